"""The adapters of Ollama's two routes for embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from math import hypot
from typing import Any

from api.protocols.base import InvalidProtocolRequest, Json, LoadRequest, OpenAIRequest, StreamTranslator
from api.protocols.ollama.adapters import OllamaAdapter
from api.protocols.ollama.answers import counts, load_durations
from api.protocols.ollama.requests import EmbeddingsRequest, EmbedRequest, OllamaRequest
from api.protocols.ollama.served_models import find_model

EMBEDDINGS = "/v1/embeddings"
_FITTING = -1  # as many tokens as the model takes


class OllamaEmbed(OllamaAdapter[EmbedRequest]):
    """`POST /api/embed`: normalised vectors, of any length up to the model's."""

    name = "ollama-embed"
    route = "/api/embed"
    request_schema = EmbedRequest

    def to_openai(self, request: EmbedRequest) -> OpenAIRequest | LoadRequest:
        model = find_model(self.models, request.model)
        if (request.dimensions or 0) < 0:
            raise InvalidProtocolRequest("dimensions: must not be negative", param="dimensions", status=400)
        texts = request.texts()
        if not texts:
            return self.load(request, model, lambda: {"model": request.model, "embeddings": []})
        return OpenAIRequest(
            EMBEDDINGS, _body(request, model.name, texts, cuts=request.truncate is not False)
        )

    def translator_for(self, request: EmbedRequest) -> StreamTranslator | None:
        return None  # `stream` has no effect on this route

    def from_openai(self, answer: Mapping[str, Any], request: EmbedRequest) -> Json:
        vectors = [_unit(vector[: request.dimensions or None]) for vector in _vectors(answer)]
        used = counts(answer.get("usage") or {}, {})
        used.pop("eval_count", None)
        return {"model": request.model, "embeddings": vectors, **load_durations(request.times), **used}


class OllamaEmbeddings(OllamaAdapter[EmbeddingsRequest]):
    """`POST /api/embeddings`: one text, its vector as the engine computes it."""

    name = "ollama-embeddings"
    route = "/api/embeddings"
    request_schema = EmbeddingsRequest

    def to_openai(self, request: EmbeddingsRequest) -> OpenAIRequest | LoadRequest:
        model = find_model(self.models, request.model)
        if not request.prompt:
            return self.load(request, model, lambda: {"embedding": []})
        return OpenAIRequest(EMBEDDINGS, _body(request, model.name, [request.prompt], cuts=True))

    def translator_for(self, request: EmbeddingsRequest) -> StreamTranslator | None:
        return None

    def from_openai(self, answer: Mapping[str, Any], request: EmbeddingsRequest) -> Json:
        return {"embedding": _vectors(answer)[0]}


def _body(request: OllamaRequest, model: str, texts: list[str], *, cuts: bool) -> dict[str, Any]:
    """`cuts`: inputs that don't fit are truncated."""
    given = {name: value for name, value in request.openai_fields().items() if name != "stream"}
    cut = {"truncate_prompt_tokens": _FITTING} if cuts else {}
    return {**given, **cut, "model": model, "input": texts, "encoding_format": "float"}


def _vectors(answer: Mapping[str, Any]) -> list[list[float]]:
    return [entry["embedding"] for entry in sorted(answer["data"], key=lambda entry: entry["index"])]


def _unit(vector: list[float]) -> list[float]:
    """The vector with length 1, as Ollama's are; most engines' are already."""
    length = hypot(*vector)
    if length == 0 or abs(length - 1) < 1e-6:
        return vector
    return [value / length for value in vector]
