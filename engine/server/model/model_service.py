"""Common to all servers: the engine, the model once loaded, metrics, tokenizing, the queue limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.config import ServerConfig
from engine.core.engine_thread import EngineThread
from engine.errors import InvalidRequest, PromptTooLong
from engine.server.http.errors import NotReady, QueueFull
from engine.server.http.large_work import LARGE_BYTES, LargeWork
from engine.server.model.metrics import Metrics
from engine.server.model.served_model import ServedModel
from engine.server.model.truncation import Truncation
from engine.server.protocol.limits import most_text_bytes

_COUNTED_BYTES = 1 << 20  # up to this size, errors report the exact number of tokens


class ModelService:
    def __init__(
        self, engine: EngineThread[Any, Any, Any], config: ServerConfig, *, max_num_seqs: int
    ) -> None:
        self.engine = engine
        self.config = config
        self.metrics = Metrics(config.served_model_names[0], engine.stats)
        self.draining = False
        self.large_work = LargeWork()
        self._capacity = max_num_seqs + config.max_waiting  # running and waiting sequences
        self._model: ServedModel | None = None

    def serve(self, model: ServedModel) -> None:
        """Start accepting requests. The engine must be running."""
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
        """Tokenize one text, as `encode_each` does."""
        (token_ids,) = await self.encode_each(
            [text], add_special_tokens=add_special_tokens, truncation=truncation, param=param, output=output
        )
        return token_ids

    async def encode_each(
        self,
        texts: Sequence[str],
        *,
        add_special_tokens: bool,
        truncation: Truncation | None = None,
        param: str = "prompt",
        output: int | None = 1,
    ) -> list[list[int]]:
        """Tokenize each text; long ones in a thread, to keep streams flowing.

        Raises PromptTooLong before tokenizing a large text that cannot fit in any tokenization, and
        InvalidRequest for one above the size limit. `output`: the number of output tokens requested; None =
        only count, so the text need not fit.
        """
        tokenizer = self.model.tokenizer
        if truncation is not None:
            texts = [truncation.cut_text(text, tokenizer.longest_token_bytes) for text in texts]
        for text in texts:
            self._check_length(text, param, None if truncation is not None else output)
        if sum(map(len, texts)) * 4 < LARGE_BYTES:
            encoded = [tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts]
        else:
            encoded = await self.large_work.run_released(
                lambda: tokenizer.encode_without_gil(texts, add_special_tokens=add_special_tokens)
            )
        return encoded if truncation is None else [truncation.cut(token_ids) for token_ids in encoded]

    def _check_length(self, text: str, param: str, output: int | None) -> None:
        longest, max_model_len = self.model.tokenizer.longest_token_bytes, self.engine.max_model_len
        if len(text) * 4 <= _COUNTED_BYTES:
            return
        num_bytes = len(text.encode(errors="replace"))
        if output is not None and num_bytes > _COUNTED_BYTES and num_bytes // longest > max_model_len:
            raise PromptTooLong.of(max_model_len, num_bytes // longest, output, part=param, is_exact=False)
        most = most_text_bytes(max_model_len)
        if num_bytes > most:
            raise InvalidRequest(f"{param}: at most {most} bytes of text, not {num_bytes}.", param=param)

    def check_capacity(self, num_sequences: int) -> None:
        """Raises QueueFull if the queue is full. An idle server accepts a request of any size."""
        num_unfinished = self.engine.num_unfinished
        if num_unfinished and num_unfinished + num_sequences > self._capacity:
            raise QueueFull(
                f"The queue is full: {num_unfinished} sequences are running or waiting, and the maximum is "
                f"{self._capacity}. Retry later."
            )
