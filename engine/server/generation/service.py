"""The service behind the generating routes: turns requests into sequences for the engine."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.config import ServerConfig
from engine.core.async_engine import AsyncEngine
from engine.core.types import ALL_LOGPROBS, EngineRequest, SamplingParams, TokenConstraint
from engine.errors import ConfigError, InvalidRequest
from engine.server.generation.beam_generation import BeamGeneration
from engine.server.generation.beam_search import BeamSearchParams
from engine.server.generation.constraints import ConstraintFactory, make_constraint_factory
from engine.server.generation.generation import Choice, Generation
from engine.server.generation.response_store import ResponseStore
from engine.server.generation.sampling_params import TokenConstraints, check_logprobs, make_sampling_params
from engine.server.generation.stream_interval import IntervalGeneration
from engine.server.http.client_disconnect import raise_on_disconnect
from engine.server.http.request_ids import choose_request_id, current_group, new_sequence_id
from engine.server.http.tenants import cache_salt, current_tenant
from engine.server.model.model_service import ModelService
from engine.server.model.reasoning import PromptReasoning
from engine.server.model.served_model import ServedModel
from engine.server.protocol.beam_rules import check_beams
from engine.server.protocol.generation_body import GenerationBody
from engine.server.protocol.limits import (
    MAX_ANSWER_LOGPROBS,
    MAX_PROMPT_LOGPROBS,
    MAX_PROMPT_TOKENS,
    MAX_SEQUENCES,
)
from engine.structured import StructuredOutput
from engine.text.detokenizer import Detokenizer

_CHOICES_PER_TURN = 64  # created before other tasks get the event loop


@dataclass(frozen=True, slots=True)
class Prompt:
    token_ids: list[int]
    max_tokens: int  # to generate
    echo: str = ""  # text shown before the output
    is_echoed: bool = False  # then logprobs, if requested, include the prompt's


class GenerationService(ModelService):
    """The service of a model that generates."""

    engine: AsyncEngine

    def __init__(self, engine: AsyncEngine, config: ServerConfig, *, max_num_seqs: int) -> None:
        super().__init__(engine, config, max_num_seqs=max_num_seqs)
        seed = config.seed  # makes the seeds of requests reproducible
        self._random = random.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311
        self.responses = ResponseStore()

    async def load_adapter(self, name: str, path: Path, *, in_place: bool = False) -> None:
        """A LoRA adapter for requests that name it. Raises InvalidRequest and EngineError."""
        await self._load_adapter(self.model, name, path, in_place=in_place)

    async def load_first_adapters(self, model: ServedModel) -> None:
        """Those of the command line, before `model` is served: a health check waits for them.

        Raises ConfigError that names the one at fault, and EngineError.
        """
        for given in self.config.lora_modules:
            try:
                await self._load_adapter(model, given.name, given.path)
            except InvalidRequest as error:
                raise ConfigError(f"--lora-modules {given.name}: {error.message}") from error

    async def _load_adapter(
        self, model: ServedModel, name: str, path: Path, *, in_place: bool = False
    ) -> None:
        taken = (*model.names, *model.other_names)
        await model.adapters.load(self.engine, name, path, taken=taken, in_place=in_place)

    async def constraint_for(
        self,
        spec: StructuredOutput | None,
        reasoning: PromptReasoning | None = None,
        *,
        budget: int | None = None,
    ) -> ConstraintFactory | None:
        """Creates each sequence's constraint; None if unconstrained. Raises InvalidRequest."""
        tenant = current_tenant().name
        if spec is None:
            return await make_constraint_factory(self.model.grammar_compiler, spec, reasoning, budget, tenant)
        return await raise_on_disconnect(
            lambda: make_constraint_factory(self.model.grammar_compiler, spec, reasoning, budget, tenant)
        )

    async def create_generation(
        self,
        body: GenerationBody,
        prompts: Sequence[Prompt],
        *,
        make_constraint: ConstraintFactory | None = None,
        skip_special_tokens: bool | None = None,
        first_index: int = 0,
    ) -> tuple[Generation, list[Choice]]:
        """The request's generation and choices, ready to run. Raises InvalidRequest and QueueFull."""
        self.check_num_sequences(len(prompts), body.n)
        self.check_capacity(len(prompts) * body.n)
        check_logprobs(body, body.logprobs_param, self.config.max_logprobs)
        _check_prompts(body, prompts, self.model.vocab_size)
        token_constraints = await self._token_constraints(body)
        skip_special = body.skip_special_tokens if skip_special_tokens is None else skip_special_tokens
        choose_request_id(body.request_id)
        seed = self._random.getrandbits(63) if body.seed is None else body.seed
        sequences = ((prompt, number) for prompt in prompts for number in range(body.n))
        choices = []
        for index, (prompt, number) in enumerate(sequences, first_index):
            params = make_sampling_params(
                body,
                self.model.defaults,
                token_constraints,
                max_tokens=prompt.max_tokens,
                seed=seed + number,
                prompt_logprobs=_num_prompt_logprobs(body, prompt),
            )
            constraint = None if make_constraint is None else make_constraint()
            choices.append(
                self._make_choice(index, prompt, body, params, constraint, skip_special=skip_special)
            )
            if index % _CHOICES_PER_TURN == _CHOICES_PER_TURN - 1:
                await asyncio.sleep(0)  # let other tasks run
        if body.use_beam_search:
            return self._create_beam_search(body, prompts, choices, make_constraint), choices
        interval = max(body.stream_interval or 1, self.config.stream_interval) if body.stream else 1
        if interval > 1:
            return IntervalGeneration(self.engine, self.metrics, choices, interval=interval), choices
        return Generation(self.engine, self.metrics, choices), choices

    async def _token_constraints(self, body: GenerationBody) -> TokenConstraints:
        make = partial(TokenConstraints.of, body, self.model.tokenizer, self.model.vocab_size)
        return await self.large_work.run(make) if TokenConstraints.is_expensive(body) else make()

    def _create_beam_search(
        self,
        body: GenerationBody,
        prompts: Sequence[Prompt],
        choices: Sequence[Choice],
        make_constraint: ConstraintFactory | None,
    ) -> BeamGeneration:
        check_beams(
            body,
            longest=max(len(prompt.token_ids) + prompt.max_tokens for prompt in prompts),
            is_constrained=make_constraint is not None,
            scores_prompt=body.num_logprobs is not None and any(prompt.is_echoed for prompt in prompts),
            vocab_size=self.model.vocab_size,
        )
        params = BeamSearchParams(
            width=body.n,
            length_penalty=body.length_penalty,
            end_token_ids=frozenset(self.model.end_token_ids),
            ignores_end_tokens=body.ignore_eos,
            keeps_end_token=body.include_stop_str_in_output,
            num_logprobs=body.num_logprobs,
        )
        return BeamGeneration(self.engine, self.metrics, choices, params)

    def check_num_sequences(self, num_prompts: int, num_choices: int) -> None:
        """Raises InvalidRequest."""
        num_sequences = num_prompts * num_choices
        if num_sequences > MAX_SEQUENCES:
            raise InvalidRequest(
                f"{num_prompts} prompts with n {num_choices} make {num_sequences} sequences; "
                f"the maximum is {MAX_SEQUENCES}.",
                param="n",
            )

    def _make_choice(
        self,
        index: int,
        prompt: Prompt,
        body: GenerationBody,
        params: SamplingParams,
        constraint: TokenConstraint | None,
        *,
        skip_special: bool,
    ) -> Choice:
        shows_stop_token = body.include_stop_str_in_output
        detokenizer = Detokenizer(
            self.model.tokenizer,
            prompt.token_ids,
            stops=body.stops,
            min_tokens=params.min_tokens,
            skip_special_tokens=skip_special,
            include_stop_in_output=shows_stop_token,
        )
        adapter = self.model.adapters.find(body.model)
        request = EngineRequest(
            request_id=new_sequence_id(),
            group=current_group(),
            prompt_token_ids=prompt.token_ids,
            params=params,
            arrival_time=time.monotonic(),
            priority=body.priority,
            constraint=constraint,
            cache_salt=cache_salt(body.cache_salt, b"" if adapter is None else adapter.key),
            adapter=adapter,
        )
        return Choice(index, request, detokenizer, prefix=prompt.echo, shows_stop_token=shows_stop_token)


def _check_prompts(body: GenerationBody, prompts: Sequence[Prompt], vocab_size: int) -> None:
    """Raise InvalidRequest if the prompts of all choices together exceed the limits of a request."""
    num_tokens = sum(len(prompt.token_ids) for prompt in prompts) * body.n
    if num_tokens > MAX_PROMPT_TOKENS:
        raise InvalidRequest(
            f"n: prompts times choices have {num_tokens} tokens; the maximum is {MAX_PROMPT_TOKENS}.",
            param="n",
        )
    counts = [(len(prompt.token_ids), _num_prompt_logprobs(body, prompt)) for prompt in prompts]
    sizes = [length * (1 + (vocab_size if num < 0 else num)) for length, num in counts if num is not None]
    if sum(sizes) * body.n > MAX_PROMPT_LOGPROBS:
        raise InvalidRequest(
            f"prompt_logprobs: prompt tokens times logprobs per token times n is {sum(sizes) * body.n}; the "
            f"maximum is {MAX_PROMPT_LOGPROBS}.",
            param="prompt_logprobs" if body.prompt_logprobs is not None else body.logprobs_param,
        )
    check_logprobs_total(body, [prompt.max_tokens for prompt in prompts], vocab_size)


def check_batch(body: GenerationBody, requests: Sequence[EngineRequest], vocab_size: int) -> None:
    """The same checks for a batch of conversations."""
    num_tokens = sum(len(request.prompt_token_ids) for request in requests)
    if num_tokens > MAX_PROMPT_TOKENS:
        raise InvalidRequest(
            f"messages: all conversations have {num_tokens} tokens; the maximum is {MAX_PROMPT_TOKENS}.",
            param="messages",
        )
    check_logprobs_total(body, [request.params.max_tokens for request in requests], vocab_size)


def check_logprobs_total(body: GenerationBody, lengths: Sequence[int], vocab_size: int) -> None:
    """Raise InvalidRequest if a non-streamed response could become too large to collect.

    `lengths`: the maximum output length per prompt. A single choice may fill its context.
    """
    num = body.num_logprobs
    is_single = len(lengths) * body.n == 1 and num != ALL_LOGPROBS
    if num is None or body.stream or is_single:
        return
    num_logprobs = sum(lengths) * body.n * (1 + (vocab_size if num < 0 else num))
    if num_logprobs > MAX_ANSWER_LOGPROBS:
        raise InvalidRequest(
            f"{body.logprobs_param}: max_tokens of all choices times logprobs per token is {num_logprobs}; "
            f"the maximum is {MAX_ANSWER_LOGPROBS}. Request fewer logprobs, or use stream: true.",
            param=body.logprobs_param,
        )


def _num_prompt_logprobs(body: GenerationBody, prompt: Prompt) -> int | None:
    """The number of logprobs per prompt token; None = no logprobs."""
    return body.num_logprobs if prompt.is_echoed else body.prompt_logprobs
