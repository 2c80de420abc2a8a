"""The adapters of Ollama's routes that ask a model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

from api.protocols.base import (
    ChatMessage,
    ErrorDetail,
    InvalidProtocolRequest,
    Json,
    LoadRequest,
    OpenAIRequest,
    ProtocolAdapter,
    StreamTranslator,
)
from api.protocols.ollama import messages, options
from api.protocols.ollama.answers import Answer, AnswerShape, ChatShape, GenerateShape
from api.protocols.ollama.requests import (
    AnsweringRequest,
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaRequest,
)
from api.protocols.ollama.served_models import NOT_FOUND, ServedModel, ServedModels, find_model

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

RequestT = TypeVar("RequestT", bound=OllamaRequest)
AnsweringT = TypeVar("AnsweringT", bound=AnsweringRequest)


class OllamaAdapter(ProtocolAdapter[RequestT], Generic[RequestT]):
    """What Ollama's routes have in common: names of models, and errors."""

    def __init__(self, models: ServedModels) -> None:
        self.models = models

    def create_prompt(self, request: RequestT) -> str | Sequence[ChatMessage]:
        raise NotImplementedError  # `to_openai` makes the whole request

    def create_error_response(self, error: ErrorDetail) -> tuple[int, Json]:
        """Ollama has one status for a request that can't be served; 404 is for unknown models alone."""
        if error.status == 404 and error.code != NOT_FOUND:  # of an engine that lacks this API
            return 400, {"error": f"the model's engine can't do this: {error.message}"}
        is_wrong = error.status == 422 or error.code == "wrong_runner"
        return 400 if is_wrong else error.status, {"error": error.message}

    def load(self, request: RequestT, model: ServedModel, answer: Callable[[], Json]) -> LoadRequest:
        """For a request that asks nothing; `answer` is its response."""
        return LoadRequest(model.name, answer, unloads=request.unloads)


class _AnsweringAdapter(OllamaAdapter[AnsweringT], Generic[AnsweringT]):
    """A route whose answer is text, streamed by default."""

    shape: type[AnswerShape]

    def to_openai(self, request: AnsweringT) -> OpenAIRequest | LoadRequest:
        model = find_model(self.models, request.model)
        request.check()
        if self.asks_nothing(request):
            return self.load(request, model, lambda: self._loaded(request))
        ignored: dict[str, str] = {}
        served_context = partial(self.models.context_length, model.name)
        body = {
            **request.openai_fields(),
            **options.openai_fields(request.options, model, served_context, ignored),
            **request.openai_format(),
            **self._reasoning(request, model),
            "model": model.name,
            "stream": True,  # also where the client wants it whole: only a stream tells how long what took
            "stream_options": {"include_usage": True},
        }
        asked = self.ask(request, model, body)
        return replace(asked, ignored={**ignored, **asked.ignored})

    @abstractmethod
    def asks_nothing(self, request: AnsweringT) -> bool:
        """Whether it only loads or unloads the model."""

    @abstractmethod
    def ask(self, request: AnsweringT, model: ServedModel, body: dict[str, Any]) -> OpenAIRequest:
        """The request to the model, whose other fields are in `body`."""

    def from_openai(self, answer: Mapping[str, Any], request: AnsweringT) -> Json:
        return self._answer(request, is_collected=True).whole(answer)

    def translator_for(self, request: AnsweringT) -> StreamTranslator:
        return self._answer(request, is_collected=not request.stream)

    def _answer(self, request: AnsweringT, *, is_collected: bool) -> Answer:
        return Answer(self.shape(request.model or ""), request.times, is_collected=is_collected)

    def _loaded(self, request: AnsweringT) -> Json:
        shape = self.shape(request.model or "")
        reason = "unload" if request.unloads else "load"
        return shape.object(shape.piece("", "", []), done=True) | {"done_reason": reason}

    def _reasoning(self, request: AnsweringT, model: ServedModel) -> dict[str, Any]:
        """Raises InvalidProtocolRequest if the model can't reason, in Ollama's words."""
        fields = request.openai_reasoning()
        if request.think and self.models.can_think(model.name) is False:
            raise InvalidProtocolRequest(
                f'"{request.model}" does not support thinking', param="think", status=400
            )
        return fields


class OllamaChat(_AnsweringAdapter[OllamaChatRequest]):
    """`POST /api/chat`."""

    name = "ollama-chat"
    route = "/api/chat"
    request_schema = OllamaChatRequest
    shape = ChatShape

    def asks_nothing(self, request: OllamaChatRequest) -> bool:
        return not request.messages

    def ask(self, request: OllamaChatRequest, model: ServedModel, body: dict[str, Any]) -> OpenAIRequest:
        given = request.messages or []
        body["messages"] = messages.to_openai(given)
        if request.tools:
            body["tools"] = request.tools
        return OpenAIRequest(CHAT, body | _chat_logprobs(request), messages.unknown_fields(given))


class OllamaGenerate(_AnsweringAdapter[OllamaGenerateRequest]):
    """`POST /api/generate`: a chat of one turn, or with `raw` a completion."""

    name = "ollama-generate"
    route = "/api/generate"
    request_schema = OllamaGenerateRequest
    shape = GenerateShape

    def asks_nothing(self, request: OllamaGenerateRequest) -> bool:
        return not request.prompt

    def ask(self, request: OllamaGenerateRequest, model: ServedModel, body: dict[str, Any]) -> OpenAIRequest:
        prompt = request.prompt or ""
        if request.raw or request.suffix:
            return self._complete(request, model, body | {"prompt": prompt})
        asked: list[ChatMessage] = [{"role": "system", "content": request.system}] if request.system else []
        asked.append({"role": "user", "content": messages.with_images(prompt, request.images)})
        return OpenAIRequest(CHAT, body | {"messages": asked} | _chat_logprobs(request))

    def _complete(
        self, request: OllamaGenerateRequest, model: ServedModel, body: dict[str, Any]
    ) -> OpenAIRequest:
        """A completion. Raises InvalidProtocolRequest."""
        if request.images:
            raise InvalidProtocolRequest("images: not with raw or suffix", param="images", status=400)
        body.setdefault("max_tokens", model.unlimited_tokens)
        for name in ("reasoning_effort", "chat_template_kwargs"):  # there is no template
            body.pop(name, None)
        if request.suffix:
            body["suffix"] = request.suffix
        if request.logprobs:
            body["logprobs"] = request.top_logprobs or 0
        return OpenAIRequest(COMPLETIONS, body)


def _chat_logprobs(request: AnsweringRequest) -> dict[str, Any]:
    if not request.logprobs:
        return {}
    return {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
