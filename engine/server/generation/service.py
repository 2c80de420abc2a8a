"""What the routes that generate need: how a request becomes sequences and enters the engine."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from engine.config import ServerConfig
from engine.core.async_engine import AsyncEngine
from engine.core.types import ALL_LOGPROBS, EngineRequest, SamplingParams, TokenConstraint
from engine.errors import InvalidRequest
from engine.server.generation.beam_generation import BeamGeneration
from engine.server.generation.beam_search import BeamSearchParams
from engine.server.generation.constraints import ConstraintFactory, make_constraint_factory
from engine.server.generation.generation import Choice, Generation
from engine.server.generation.response_store import ResponseStore
from engine.server.generation.sampling_params import TokenConstraints, check_logprobs, make_sampling_params
from engine.server.generation.stream_interval import IntervalGeneration
from engine.server.http.client_disconnect import while_client_stays
from engine.server.http.request_ids import choose_request_id, current_group, new_sequence_id
from engine.server.http.tenants import cache_salt, current_tenant
from engine.server.model.model_service import ModelService
from engine.server.model.reasoning import PromptReasoning
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

_MADE_AT_ONCE = 64  # choices


@dataclass(frozen=True, slots=True)
class Prompt:
    token_ids: list[int]
    max_tokens: int  # that may be generated after it
    echo: str = ""  # what is shown before the answer
    is_echoed: bool = False  # then logprobs are wanted of it, too, if of anything


class GenerationService(ModelService):
    """Of a model that generates."""

    engine: AsyncEngine

    def __init__(self, engine: AsyncEngine, config: ServerConfig, *, max_num_seqs: int) -> None:
        super().__init__(engine, config, max_num_seqs=max_num_seqs)
        seed = config.seed  # with one, what requests draw is to be the same each time
        self._random = random.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311
        self.responses = ResponseStore()

    async def constraint_for(
        self,
        spec: StructuredOutput | None,
        thinking: PromptReasoning | None = None,
        *,
        budget: int | None = None,
    ) -> ConstraintFactory | None:
        """What makes each sequence's constraint; None where anything goes. Raises InvalidRequest."""
        tenant = current_tenant().name
        if spec is None:
            return await make_constraint_factory(self.model.structurer, spec, thinking, budget, tenant)
        return await while_client_stays(
            lambda: make_constraint_factory(self.model.structurer, spec, thinking, budget, tenant)
        )

    async def begin(
        self,
        body: GenerationBody,
        prompts: Sequence[Prompt],
        *,
        constrain: ConstraintFactory | None = None,
        skip_special_tokens: bool | None = None,
        first_index: int = 0,
    ) -> tuple[Generation, list[Choice]]:
        """The request's choices, ready to run. Raises InvalidRequest and TooManyWaiting."""
        self.check_num_sequences(len(prompts), body.n)
        self.check_room(len(prompts) * body.n)
        check_logprobs(body, body.logprobs_param, self.config.max_logprobs)
        _check_prompts(body, prompts, self.model.vocab_size)
        wishes = await self._wishes_of(body)
        shown = body.skip_special_tokens if skip_special_tokens is None else skip_special_tokens
        choose_request_id(body.request_id)
        seed = self._random.getrandbits(63) if body.seed is None else body.seed
        asked = ((prompt, number) for prompt in prompts for number in range(body.n))
        choices = []
        for index, (prompt, number) in enumerate(asked, first_index):
            params = make_sampling_params(
                body,
                self.model.defaults,
                wishes,
                max_tokens=prompt.max_tokens,
                seed=seed + number,
                prompt_logprobs=_told_of(body, prompt),
            )
            constraint = None if constrain is None else constrain()
            choices.append(self._make_choice(index, prompt, body, params, constraint, skip_special=shown))
            if index % _MADE_AT_ONCE == _MADE_AT_ONCE - 1:
                await asyncio.sleep(0)  # others want the loop, too
        if body.use_beam_search:
            return self._search(body, prompts, choices, constrain), choices
        interval = max(body.stream_interval or 1, self.config.stream_interval) if body.stream else 1
        if interval > 1:
            return IntervalGeneration(self.engine, self.metrics, choices, interval=interval), choices
        return Generation(self.engine, self.metrics, choices), choices

    async def _wishes_of(self, body: GenerationBody) -> TokenConstraints:
        make = partial(TokenConstraints.of, body, self.model.tokenizer, self.model.vocab_size)
        return await self.large_work.run(make) if TokenConstraints.is_long(body) else make()

    def _search(
        self,
        body: GenerationBody,
        prompts: Sequence[Prompt],
        choices: Sequence[Choice],
        constrain: ConstraintFactory | None,
    ) -> BeamGeneration:
        check_beams(
            body,
            longest=max(len(prompt.token_ids) + prompt.max_tokens for prompt in prompts),
            is_constrained=constrain is not None,
            scores_prompt=body.num_logprobs is not None and any(prompt.is_echoed for prompt in prompts),
            vocab_size=self.model.vocab_size,
        )
        rule = BeamSearchParams(
            width=body.n,
            length_penalty=body.length_penalty,
            end_token_ids=frozenset(self.model.end_token_ids),
            ignores_end=body.ignore_eos,
            keeps_end=body.include_stop_str_in_output,
            num_logprobs=body.num_logprobs,
        )
        return BeamGeneration(self.engine, self.metrics, choices, rule)

    def check_num_sequences(self, num_prompts: int, num_choices: int) -> None:
        """Raises InvalidRequest."""
        num_sequences = num_prompts * num_choices
        if num_sequences > MAX_SEQUENCES:
            raise InvalidRequest(
                f"{num_prompts} prompts with n {num_choices} are {num_sequences} sequences; "
                f"at most {MAX_SEQUENCES} are possible.",
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
        show_stop = body.include_stop_str_in_output
        detokenizer = Detokenizer(
            self.model.tokenizer,
            prompt.token_ids,
            stops=body.stops,
            min_tokens=params.min_tokens,
            skip_special_tokens=skip_special,
            include_stop_in_output=show_stop,
        )
        request = EngineRequest(
            request_id=new_sequence_id(),
            group=current_group(),
            prompt_token_ids=prompt.token_ids,
            params=params,
            arrival_time=time.monotonic(),
            priority=body.priority,
            constraint=constraint,
            cache_salt=cache_salt(body.cache_salt),
        )
        return Choice(index, request, detokenizer, prefix=prompt.echo, show_stop=show_stop)


def _check_prompts(body: GenerationBody, prompts: Sequence[Prompt], vocab_size: int) -> None:
    """Raise InvalidRequest where the prompts of all choices together are more than one request may bring."""
    num_tokens = sum(len(prompt.token_ids) for prompt in prompts) * body.n
    if num_tokens > MAX_PROMPT_TOKENS:
        raise InvalidRequest(
            f"n: prompts times choices have {num_tokens} tokens; at most {MAX_PROMPT_TOKENS} are possible.",
            param="n",
        )
    told = [(len(prompt.token_ids), _told_of(body, prompt)) for prompt in prompts]
    wanted = [length * (1 + (vocab_size if num < 0 else num)) for length, num in told if num is not None]
    if sum(wanted) * body.n > MAX_PROMPT_LOGPROBS:
        raise InvalidRequest(
            f"prompt_logprobs: the prompts' tokens times the alternatives told of each, and times n, are "
            f"{sum(wanted) * body.n}; at most {MAX_PROMPT_LOGPROBS} are possible.",
            param="prompt_logprobs" if body.prompt_logprobs is not None else body.logprobs_param,
        )
    check_logprobs_total(body, [prompt.max_tokens for prompt in prompts], vocab_size)


def check_batch(body: GenerationBody, requests: Sequence[EngineRequest], vocab_size: int) -> None:
    """The same of conversations that are answered together."""
    num_tokens = sum(len(request.prompt_token_ids) for request in requests)
    if num_tokens > MAX_PROMPT_TOKENS:
        raise InvalidRequest(
            f"messages: all conversations have {num_tokens} tokens; at most {MAX_PROMPT_TOKENS} may be.",
            param="messages",
        )
    check_logprobs_total(body, [request.params.max_tokens for request in requests], vocab_size)


def check_logprobs_total(body: GenerationBody, lengths: Sequence[int], vocab_size: int) -> None:
    """Raise InvalidRequest where an answer that is collected whole may become more than a server can hold.

    `lengths`: of the answers to each prompt, at most. A single choice may fill its context.
    """
    num = body.num_logprobs
    is_single = len(lengths) * body.n == 1 and num != ALL_LOGPROBS
    if num is None or body.stream or is_single:
        return
    num_told = sum(lengths) * body.n * (1 + (vocab_size if num < 0 else num))
    if num_told > MAX_ANSWER_LOGPROBS:
        raise InvalidRequest(
            f"{body.logprobs_param}: all choices of up to max_tokens, times the logprobs told of each token, "
            f"are {num_told}; at most {MAX_ANSWER_LOGPROBS} are possible. Ask for fewer, or for a stream.",
            param=body.logprobs_param,
        )


def _told_of(body: GenerationBody, prompt: Prompt) -> int | None:
    """Of how many tokens the logprobs are told at each place of the prompt; None = of none."""
    return body.num_logprobs if prompt.is_echoed else body.prompt_logprobs
