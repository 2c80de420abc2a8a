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
from engine.server.errors import NotReady, TooManyWaiting
from engine.server.generation import Choice, Generation
from engine.server.metrics import Metrics
from engine.server.model import ServedModel
from engine.server.protocol import GenerationBody
from engine.server.request_ids import choose_request_id, new_sequence_id
from engine.server.sampling_params import make_sampling_params
from engine.types import EngineRequest

MAX_SEQUENCES = 4096  # of one request: prompts times choices


@dataclass(frozen=True, slots=True)
class Prompt:
    token_ids: list[int]
    max_tokens: int  # that may be generated after it
    echo: str = ""  # what is shown before the answer


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

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Tokens of a text; a long one is encoded in a thread, as the loop has streams to serve."""
        encode = self.model.tokenizer.encode
        if len(text) * 4 < LARGE_BYTES:
            return encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(encode, text, add_special_tokens=add_special_tokens)

    def begin(self, body: GenerationBody, prompts: Sequence[Prompt]) -> tuple[Generation, list[Choice]]:
        """The request's choices, ready to run. Raises InvalidRequest and TooManyWaiting."""
        self._check_room(len(prompts), body.n)
        choose_request_id(body.request_id)
        seed = self._random.getrandbits(63) if body.seed is None else body.seed
        numbered = enumerate((prompt, number) for prompt in prompts for number in range(body.n))
        choices = [
            self._make_choice(index, prompt, body, seed=seed + number) for index, (prompt, number) in numbered
        ]
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

    def _make_choice(self, index: int, prompt: Prompt, body: GenerationBody, *, seed: int) -> Choice:
        show_stop = body.include_stop_str_in_output
        params = make_sampling_params(body, self.model.defaults, max_tokens=prompt.max_tokens, seed=seed)
        detokenizer = Detokenizer(
            self.model.tokenizer,
            prompt.token_ids,
            stops=body.stops,
            min_tokens=params.min_tokens,
            skip_special_tokens=body.skip_special_tokens,
            include_stop_in_output=show_stop,
        )
        request = EngineRequest(
            request_id=new_sequence_id(),
            prompt_token_ids=prompt.token_ids,
            params=params,
            arrival_time=time.monotonic(),
            priority=body.priority,
        )
        return Choice(index, request, detokenizer, prefix=prompt.echo, show_stop=show_stop)
