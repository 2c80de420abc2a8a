"""The service behind the pooling routes: tokenizing, limits, the queue, metrics."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence

from engine.config import ServerConfig
from engine.core.types import FinishReason
from engine.errors import EngineError, InvalidRequest, PromptTooLong
from engine.pooling.engine import PoolingEngine
from engine.pooling.plan import PoolingPlan, Task
from engine.pooling.types import PoolingRequest
from engine.server.http.large_work import LARGE_BYTES
from engine.server.http.request_ids import choose_request_id, new_sequence_id
from engine.server.http.request_log import current_record
from engine.server.model.model_service import ModelService
from engine.server.pooling.bodies import PoolingOptions
from engine.server.pooling.encode import Cut, Encoded, Text, cut_tokens, encode_texts
from engine.server.protocol.limits import MAX_PAIR_CHARS

# No language has this many characters per token; runs of spaces may, and get some extra.
_CHARACTERS_PER_TOKEN = 64
_EXTRA_CHARACTERS = 4096

_REMEDY = "Please reduce the length of the input, or truncate it with truncate_prompt_tokens: -1."


def check_chars(size: int, param: str) -> None:
    """Raise InvalidRequest if all inputs or pairs together have too many characters."""
    if size > MAX_PAIR_CHARS:
        raise InvalidRequest(
            f"{param}: at most {MAX_PAIR_CHARS} characters in all inputs or pairs, not {size}.", param=param
        )


class PoolingService(ModelService):
    """The service of a pooling model."""

    engine: PoolingEngine

    def __init__(self, engine: PoolingEngine, config: ServerConfig, *, max_num_seqs: int) -> None:
        super().__init__(engine, config, max_num_seqs=max_num_seqs)

    @property
    def plan(self) -> PoolingPlan:
        return self.engine.plan

    def cut_of(self, options: PoolingOptions) -> Cut | None:
        """Raises InvalidRequest for an invalid length."""
        requested, limit = options.truncate_prompt_tokens, self.plan.max_model_len
        if requested is None:
            return None
        if requested == 0 or requested > limit:
            raise InvalidRequest(
                f"truncate_prompt_tokens is {requested}; use 1 to {limit}, or -1 for {limit}.",
                param="truncate_prompt_tokens",
            )
        return Cut(limit if requested == -1 else requested, options.truncation_side or "right")

    async def encode_all(
        self, texts: Sequence[Text], *, param: str, add_special_tokens: bool = True, cut: Cut | None = None
    ) -> list[Encoded]:
        """Tokenize texts; large ones in a thread. `param`: their field in the body.

        Raises QueueFull, and PromptTooLong before tokenizing texts that cannot fit.
        """
        self.check_capacity(len(texts))
        texts = self._check_text_lengths(texts, param, cut)
        tokenizer = self.model.tokenizer
        size = sum(len(text) if isinstance(text, str) else len(text[0]) + len(text[1]) for text in texts)
        check_chars(size, param)
        if size * 4 < LARGE_BYTES:
            return encode_texts(tokenizer, texts, add_special_tokens=add_special_tokens, cut=cut)
        return await self.large_work.run_released(
            lambda: encode_texts(tokenizer, texts, add_special_tokens=add_special_tokens, cut=cut)
        )

    async def encode_inputs(
        self, inputs: Sequence[str | list[int]], *, add_special_tokens: bool, cut: Cut | None
    ) -> list[Encoded]:
        """Tokenize texts; token ids are used as they are."""
        texts = [item for item in inputs if isinstance(item, str)]
        if texts:
            return await self.encode_all(texts, param="input", add_special_tokens=add_special_tokens, cut=cut)
        tokens = [item for item in inputs if not isinstance(item, str)]
        for index, token_ids in enumerate(tokens):
            self.model.check_token_ids(token_ids, "input" if len(tokens) == 1 else f"input[{index}]")
        return [Encoded(token_ids if cut is None else cut_tokens(token_ids, cut)) for token_ids in tokens]

    def use_activation(self, options: PoolingOptions) -> bool:
        return self.plan.use_activation if options.use_activation is None else options.use_activation

    def check_dimensions(self, dimensions: int | None, param: str = "dimensions") -> None:
        """Raises InvalidRequest unless the model's vectors can be shortened to this length."""
        plan, name = self.plan, self.model.name
        if dimensions is None:
            return
        if plan.task is not Task.EMBED or not plan.is_matryoshka:
            raise InvalidRequest(
                f"{param} is not supported: {name!r} was not trained for shorter vectors (Matryoshka).",
                param=param,
            )
        if dimensions > plan.embedding_size:
            raise InvalidRequest(
                f"{param} {dimensions} is too large: {name!r} has vectors of {plan.embedding_size} numbers.",
                param=param,
            )
        if plan.matryoshka_dimensions and dimensions not in plan.matryoshka_dimensions:
            possible = ", ".join(map(str, plan.matryoshka_dimensions))
            raise InvalidRequest(
                f"{param} {dimensions} is not supported: {name!r} was trained for {possible}.", param=param
            )

    async def pool(
        self,
        inputs: Sequence[Encoded],
        *,
        param: str,
        use_activation: bool,
        dimensions: int | None = None,
        priority: int = 0,
        request_id: str | None = None,
    ) -> list[array[float]]:
        """The values of each input, in order. `param`: the inputs' field in the body, for errors.

        Raises InvalidRequest, PromptTooLong, QueueFull and what the engine raises.
        """
        self._check_lengths(inputs, param)
        self.check_capacity(len(inputs))
        choose_request_id(request_id)
        arrival_time = time.monotonic()
        requests = [
            PoolingRequest(
                request_id=new_sequence_id(),
                token_ids=encoded.token_ids,
                type_ids=encoded.type_ids,
                dimensions=dimensions,
                use_activation=use_activation,
                priority=priority,
                arrival_time=arrival_time,
            )
            for encoded in inputs
        ]
        reason = FinishReason.ABORT
        try:
            values = await self.engine.pool(requests)
            reason = FinishReason.STOP
            return values
        except EngineError:
            reason = FinishReason.ERROR
            raise
        finally:
            seconds = time.monotonic() - arrival_time
            for request in requests:
                self.metrics.observe_end(reason.value, end_to_end_s=seconds, decode_s=None)
                self.metrics.observe_lengths(prompt=len(request.token_ids), generated=0)
            if (record := current_record()) is not None:
                num_tokens = sum(len(request.token_ids) for request in requests)
                record.add(prompt_tokens=num_tokens, reasons=[reason])

    def _check_text_lengths(self, texts: Sequence[Text], param: str, cut: Cut | None) -> Sequence[Text]:
        """Refuse or truncate texts with more characters than can fit, before tokenizing."""
        most = self.plan.max_model_len * _CHARACTERS_PER_TOKEN + _EXTRA_CHARACTERS
        longest = max(len(part) for text in texts for part in ([text] if isinstance(text, str) else text))
        if longest <= most:
            return texts
        if cut is None:
            raise PromptTooLong(
                f"This model's maximum context length is {self.plan.max_model_len} tokens. However, {param} "
                f"has a text of {longest} characters; at most {most} characters are accepted. "
                f"{_REMEDY}",
                param=param,
            )
        part = slice(most) if cut.side == "right" else slice(-most, None)
        return [text[part] if isinstance(text, str) else (text[0][part], text[1][part]) for text in texts]

    def _check_lengths(self, inputs: Sequence[Encoded], param: str) -> None:
        limit = self.plan.max_model_len
        for index, encoded in enumerate(inputs):
            where = param if len(inputs) == 1 else f"{param}[{index}]"
            if not encoded.token_ids:
                raise InvalidRequest(f"{where} is empty: it must have at least one token.", param=where)
            if len(encoded.token_ids) > limit:
                raise PromptTooLong(
                    f"This model's maximum context length is {limit} tokens. However, you requested "
                    f"{len(encoded.token_ids)} tokens in {where}. {_REMEDY}",
                    param=where,
                )
