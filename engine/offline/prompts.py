"""A program's prompts and conversations as requests, checked by the server's bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import Field

from engine.errors import InvalidRequest
from engine.offline.concurrency import all_or_none
from engine.offline.outputs import OutputMaker, RequestOutput
from engine.offline.params import LoRARequest, SamplingParams, as_json
from engine.server.generation.chat_run import prepare_chat
from engine.server.generation.generation import Choice, ChoiceDelta, Generation, merge_deltas
from engine.server.generation.service import GenerationService
from engine.server.http.request_ids import set_request_id
from engine.server.openai.completions import prepare_completion
from engine.server.protocol.body_reader import check
from engine.server.protocol.chat_body import ChatBody
from engine.server.protocol.completion_body import CompletionBody
from engine.server.protocol.field_rules import CHAT, COMPLETION
from engine.server.protocol.unknown_fields import collect_ignored

Prompt: TypeAlias = str | Sequence[int] | Mapping[str, Any]

_PROMPT_KEYS = frozenset({"prompt", "prompt_token_ids", "cache_salt"})


class _ConversationBody(ChatBody):
    """A chat whose `logprobs` is a number, as a completion's."""

    logprobs: int | None = Field(default=None, ge=-1)  # type: ignore[assignment]

    @property
    def logprobs_param(self) -> str:
        return "logprobs"

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that runs once its generation is entered."""

    request_id: str
    prompt: str | None
    has_text: bool  # whether the output has it
    generation: Generation
    choices: Sequence[Choice]
    priority: int = 0

    async def run(self, maker: OutputMaker) -> RequestOutput:
        """Raises EngineError. If cancelled, it is aborted."""
        deltas: dict[int, list[ChoiceDelta]] = {choice.index: [] for choice in self.choices}
        async with self.generation as generation:
            async for step in generation.steps():
                for delta in step:
                    deltas[delta.choice.index].append(delta)
        wholes = [(choice, merge_deltas(deltas[choice.index])) for choice in self.choices]
        first, whole = wholes[0]
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=list(first.request.prompt_token_ids),
            prompt_logprobs=maker.prompt_logprobs(whole.prompt_logprobs),
            outputs=[maker.completion(choice, each, has_text=self.has_text) for choice, each in wholes],
            num_cached_tokens=first.num_cached_tokens,
        )


Prepare: TypeAlias = Callable[[GenerationService, str], Awaitable[Prepared]]  # also takes the request's id


def split_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise InvalidRequest(f"prompts must be a text, token ids or several of them, not {prompts!r:.100}.")
    plain: list[Any] = prompts.tolist() if hasattr(prompts, "tolist") else list(prompts)
    return [plain] if plain and all(isinstance(item, int) for item in plain) else plain


def for_prompt(prompt: Prompt, params: SamplingParams, model: str | None, priority: int) -> Prepare:
    """`model`: an adapter's name. Raises InvalidRequest."""
    fields = _prompt_fields(prompt)
    text = fields["prompt"] if isinstance(fields["prompt"], str) else None
    others = {"priority": priority, "model": model}
    body = check({**params.body_fields(), **fields, **others}, CompletionBody, COMPLETION)

    async def prepare(service: GenerationService, request_id: str) -> Prepared:
        generation, choices = await prepare_completion(service, body)
        return Prepared(request_id, text, params.detokenize, generation, choices, priority)

    return prepare


def for_conversation(
    messages: Sequence[Mapping[str, Any]],
    params: SamplingParams,
    model: str | None,
    options: Mapping[str, Any],
) -> Prepare:
    """`model`: an adapter's name; `options`: further fields of a chat's body. Raises InvalidRequest."""
    fields = {name: as_json(value) for name, value in options.items() if value is not None}
    raw = {**params.body_fields(), **fields, "messages": as_json(messages), "model": model}
    body = check(raw, _ConversationBody, CHAT)

    async def prepare(service: GenerationService, request_id: str) -> Prepared:
        run = await prepare_chat(service, body)
        return Prepared(request_id, run.prompt_text, params.detokenize, run.generation, run.choices)

    return prepare


async def prepare_all(
    service: GenerationService, makes: Sequence[Callable[[], Prepare]], ids: Iterator[int], name: str
) -> list[Prepared]:
    """All requests, before the first of them runs. Raises InvalidRequest."""
    collect_ignored(refuses_unknown=False)  # so that fields without a meaning are logged
    prepares, prepared = [], []
    for index, make in enumerate(makes):
        with of_prompt(name, index, len(makes)):
            prepares.append(make())
    for index, prepare in enumerate(prepares):
        request_id = str(next(ids))
        set_request_id(request_id, is_final=True)
        with of_prompt(name, index, len(makes)):
            prepared.append(await prepare(service, request_id))
    return prepared


async def ensure_adapter(
    service: GenerationService, wanted: LoRARequest, report: Callable[[Any], None]
) -> None:
    """Load it unless its name is known. Raises InvalidRequest."""
    if wanted.lora_name in service.model.adapters:
        return
    if not service.config.takes_adapters:
        raise InvalidRequest("lora_request needs LLM(…, enable_lora=True).", param="lora_request")
    await service.load_adapter(wanted.lora_name, Path(wanted.lora_path))


async def run_all(
    prepared: Sequence[Prepared], maker: OutputMaker, most: int, report: Callable[[RequestOutput], None]
) -> list[RequestOutput]:
    """Run all, at most `most` at a time: the engine looks at each waiting request in every step."""
    slots = asyncio.Semaphore(most)
    outputs: dict[str, RequestOutput] = {}

    async def run(request: Prepared) -> None:
        async with slots:
            outputs[request.request_id] = output = await request.run(maker)
        report(output)

    by_priority = sorted(prepared, key=lambda request: request.priority)
    await all_or_none([run(request) for request in by_priority])
    return [outputs[request.request_id] for request in prepared]


@contextmanager
def of_prompt(name: str, index: int, count: int) -> Iterator[None]:
    """Errors say which of several prompts is at fault."""
    try:
        yield
    except InvalidRequest as error:
        if count == 1:
            raise
        raise error.renamed(f"{name}[{index}]: {error.message}", error.param) from error


def _prompt_fields(prompt: Prompt) -> dict[str, Any]:
    """The fields of a completion's body. Raises InvalidRequest."""
    if not isinstance(prompt, Mapping):
        return {"prompt": as_json(prompt)}
    given = {name: as_json(value) for name, value in prompt.items() if value is not None}
    if unknown := sorted(given.keys() - _PROMPT_KEYS):
        raise InvalidRequest(
            f"{unknown[0]!r} is not supported in a prompt: give prompt or prompt_token_ids.", param=unknown[0]
        )
    # vLLM's own prompts have both once they are tokenized; the tokens are what counts.
    text, token_ids = given.pop("prompt", None), given.pop("prompt_token_ids", None)
    if text is None and token_ids is None:
        raise InvalidRequest("A prompt needs prompt or prompt_token_ids.", param="prompt")
    return {**given, "prompt": text if token_ids is None else token_ids}
