"""What every server has, whatever its model does: an engine, the model once it is loaded, metrics, room."""

from __future__ import annotations

import asyncio
from typing import Protocol

from engine.config import ServerConfig
from engine.errors import PromptTooLong
from engine.server.body import LARGE_BYTES
from engine.server.errors import NotReady, TooManyWaiting
from engine.server.metrics import Metrics
from engine.server.model import ServedModel
from engine.server.truncation import Truncation
from engine.sleep import HeldMemory
from engine.sleeper import Sleeper
from engine.types import EngineStats

_COUNTED_BYTES = 1 << 20  # a prompt that doesn't fit is told with its exact length up to here


class ServedEngine(Protocol):
    """What is asked of an engine while it serves; AsyncEngine and PoolingEngine are two."""

    @property
    def is_alive(self) -> bool: ...

    @property
    def num_unfinished(self) -> int: ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def memory(self) -> HeldMemory: ...

    @property
    def sleeper(self) -> Sleeper: ...

    def stats(self) -> EngineStats: ...

    async def start(self) -> None: ...

    async def wait_ended(self) -> None: ...

    async def shutdown(self, timeout_s: float) -> bool: ...


class ModelService:
    def __init__(self, engine: ServedEngine, config: ServerConfig, *, max_num_seqs: int) -> None:
        self.engine = engine
        self.config = config
        self.metrics = Metrics(config.served_model_names[0], engine.stats)
        self.draining = False
        self._capacity = max_num_seqs + config.max_waiting  # sequences that run or wait
        self._model: ServedModel | None = None

    def serve(self, model: ServedModel) -> None:
        """From now on, requests are taken; the engine must have been started."""
        self._model = model
        self.metrics.expect_lengths(self.engine.max_model_len)

    @property
    def is_ready(self) -> bool:
        return self._model is not None and self.engine.is_alive and not self.draining

    @property
    def model(self) -> ServedModel:
        if self._model is None:
            raise NotReady("The model is still loading.")
        return self._model

    async def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool,
        truncation: Truncation | None = None,
        param: str = "prompt",
        output: int | None = 1,
    ) -> list[int]:
        """Tokens of a text; a long one is encoded in a thread, as the loop has streams to serve.

        Raises PromptTooLong for a large text, before that work, if it can't fit however it is split into
        tokens. `output`: how many more were asked for; None = they are only to be counted, and needn't fit.
        """
        tokenizer = self.model.tokenizer
        if truncation is not None:
            text = truncation.cut_text(text, tokenizer.longest_token_bytes)
        num_bytes = len(text.encode(errors="replace"))
        least = num_bytes // tokenizer.longest_token_bytes
        is_hopeless = num_bytes > _COUNTED_BYTES and least > self.engine.max_model_len
        if is_hopeless and output is not None and truncation is None:
            raise PromptTooLong.of(self.engine.max_model_len, least, output, part=param, is_exact=False)
        if len(text) * 4 < LARGE_BYTES:
            token_ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
        else:
            token_ids = await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)
        return token_ids if truncation is None else truncation.cut(token_ids)

    def check_room(self, num_sequences: int) -> None:
        """Raises TooManyWaiting. A server that is idle takes a request of any size."""
        num_unfinished = self.engine.num_unfinished
        if num_unfinished and num_unfinished + num_sequences > self._capacity:
            raise TooManyWaiting(
                f"{num_unfinished} sequences are running or waiting, and no more than "
                f"{self._capacity} may be: try again later."
            )
