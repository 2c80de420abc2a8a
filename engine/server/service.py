"""What every route needs: the engine, the model once it is loaded, and how a request enters the engine."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from engine.async_engine import AsyncEngine
from engine.config import ServerConfig
from engine.detokenizer import Detokenizer
from engine.errors import InvalidRequest
from engine.server.body import LARGE_BYTES
from engine.server.constraints import Constrain, make_constrain
from engine.server.errors import NotReady, PromptTooLong, TooManyWaiting
from engine.server.generation import Choice, Generation
from engine.server.generation_body import GenerationBody
from engine.server.metrics import Metrics
from engine.server.model import ServedModel
from engine.server.request_ids import choose_request_id, new_sequence_id
from engine.server.sampling_params import TokenWishes, check_logprobs, make_sampling_params
from engine.server.thinking import Thinking
from engine.structured import StructuredOutput
from engine.types import EngineRequest, SamplingParams, TokenConstraint

MAX_SEQUENCES = 4096  # of one request: prompts times choices


@dataclass(frozen=True, slots=True)
class Prompt:
    token_ids: list[int]
    max_tokens: int  # that may be generated after it
    echo: str = ""  # what is shown before the answer
    is_echoed: bool = False  # then logprobs are wanted of it, too, if of anything


class Service:
    def __init__(self, engine: AsyncEngine, config: ServerConfig, *, max_num_seqs: int) -> None:
        self.engine = engine
        self.config = config
        self.metrics = Metrics(config.served_model_names[0], engine.stats)
        self.draining = False
        self._capacity = max_num_seqs + config.max_waiting  # sequences that run or wait
        self._model: ServedModel | None = None
        self._random = random.Random(config.seed) if config.seed is not None else random.SystemRandom()

    def serve(self, model: ServedModel) -> None:
        """From now on, requests are taken; the engine must have been started."""
        self._model = model

    @property
    def is_ready(self) -> bool:
        return self._model is not None and self.engine.is_alive and not self.draining

    @property
    def model(self) -> ServedModel:
        if self._model is None:
            raise NotReady("The model is still loading.")
        return self._model

    async def encode(self, text: str, *, add_special_tokens: bool, may_be_cut: bool = False) -> list[int]:
        """Tokens of a text; a long one is encoded in a thread, as the loop has streams to serve.

        Raises PromptTooLong, before that work, for what can't fit however it is split into tokens; not if
        the caller may still cut it.
        """
        encode = self.model.tokenizer.encode
        least = len(text.encode(errors="replace")) // self.model.tokenizer.longest_token_bytes
        if least > self.engine.max_model_len and not may_be_cut:
            raise PromptTooLong(
                f"The prompt has {len(text)} characters, at least {least} tokens; the model's context is "
                f"{self.engine.max_model_len} tokens, of prompt and output together.",
                param="prompt",
            )
        if len(text) * 4 < LARGE_BYTES:
            return encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(encode, text, add_special_tokens=add_special_tokens)

    async def constraint_for(
        self, spec: StructuredOutput | None, thinking: Thinking | None = None, *, budget: int | None = None
    ) -> Constrain | None:
        """What makes each sequence's constraint; None where anything goes. Raises InvalidRequest."""
        return await make_constrain(self.model.structurer, spec, thinking, budget)

    def begin(
        self,
        body: GenerationBody,
        prompts: Sequence[Prompt],
        *,
        constrain: Constrain | None = None,
        skip_special_tokens: bool | None = None,
    ) -> tuple[Generation, list[Choice]]:
        """The request's choices, ready to run. Raises InvalidRequest and TooManyWaiting."""
        self._check_room(len(prompts), body.n)
        check_logprobs(body, body.logprobs_param, self.config.max_logprobs)
        wishes = TokenWishes.of(body, self.model.tokenizer, self.model.vocab_size)
        shown = body.skip_special_tokens if skip_special_tokens is None else skip_special_tokens
        choose_request_id(body.request_id)
        seed = self._random.getrandbits(63) if body.seed is None else body.seed
        numbered = enumerate((prompt, number) for prompt in prompts for number in range(body.n))
        choices = []
        for index, (prompt, number) in numbered:
            params = make_sampling_params(
                body,
                self.model.defaults,
                wishes,
                max_tokens=prompt.max_tokens,
                seed=seed + number,
                prompt_logprobs=body.num_logprobs if prompt.is_echoed else body.prompt_logprobs,
            )
            constraint = None if constrain is None else constrain()
            choices.append(self._make_choice(index, prompt, body, params, constraint, skip_special=shown))
        return Generation(self.engine, self.metrics, choices), choices

    def _check_room(self, num_prompts: int, num_choices: int) -> None:
        num_sequences = num_prompts * num_choices
        if num_sequences > MAX_SEQUENCES:
            raise InvalidRequest(
                f"{num_prompts} prompts with n {num_choices} are {num_sequences} sequences; "
                f"at most {MAX_SEQUENCES} are possible.",
                param="n",
            )
        num_unfinished = self.engine.num_unfinished
        if num_unfinished and num_unfinished + num_sequences > self._capacity:
            raise TooManyWaiting(
                f"{num_unfinished} sequences are running or waiting, and no more than "
                f"{self._capacity} may be: try again later."
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
            prompt_token_ids=prompt.token_ids,
            params=params,
            arrival_time=time.monotonic(),
            priority=body.priority,
            constraint=constraint,
        )
        return Choice(index, request, detokenizer, prefix=prompt.echo, show_stop=show_stop)
