"""From checked bodies to values: tokens, limits, room in the queue, metrics."""

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

# No language comes near so many characters per token; runs of spaces may, and have some beside.
_CHARACTERS_PER_TOKEN = 64
_CHARACTERS_BESIDE = 4096

_REMEDY = "Please reduce the length of the input, or cut it with truncate_prompt_tokens: -1."


def check_chars(size: int, param: str) -> None:
    """Raise InvalidRequest for more characters than one request's inputs or pairs may have together."""
    if size > MAX_PAIR_CHARS:
        raise InvalidRequest(
            f"{param}: at most {MAX_PAIR_CHARS} characters in all inputs or pairs, not {size}.", param=param
        )


class PoolingService(ModelService):
    """Of a model that pools."""

    engine: PoolingEngine

    def __init__(self, engine: PoolingEngine, config: ServerConfig, *, max_num_seqs: int) -> None:
        super().__init__(engine, config, max_num_seqs=max_num_seqs)

    @property
    def plan(self) -> PoolingPlan:
        return self.engine.plan

    def cut_of(self, options: PoolingOptions) -> Cut | None:
        """Raises InvalidRequest for a length that the model doesn't have."""
        asked, limit = options.truncate_prompt_tokens, self.plan.max_model_len
        if asked is None:
            return None
        if asked == 0 or asked > limit:
            raise InvalidRequest(
                f"truncate_prompt_tokens is {asked}; 1 to {limit}, or -1 for {limit}, are possible.",
                param="truncate_prompt_tokens",
            )
        return Cut(limit if asked == -1 else asked, options.truncation_side or "right")

    async def encode_all(
        self, texts: Sequence[Text], *, param: str, add_special_tokens: bool = True, cut: Cut | None = None
    ) -> list[Encoded]:
        """Large ones in a thread, as the loop has others to serve. `param`: where they stand in the body.

        Raises QueueFull, and PromptTooLong for what is hopelessly long, before that work.
        """
        self.check_room(len(texts))
        texts = self._within_reason(texts, param, cut)
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
        """Texts, or token ids as they are."""
        texts = [one for one in inputs if isinstance(one, str)]
        if texts:
            return await self.encode_all(texts, param="input", add_special_tokens=add_special_tokens, cut=cut)
        tokens = [one for one in inputs if not isinstance(one, str)]
        for index, token_ids in enumerate(tokens):
            self.model.check_token_ids(token_ids, "input" if len(tokens) == 1 else f"input[{index}]")
        return [Encoded(token_ids if cut is None else cut_tokens(token_ids, cut)) for token_ids in tokens]

    def use_activation(self, options: PoolingOptions) -> bool:
        return self.plan.use_activation if options.use_activation is None else options.use_activation

    def check_dimensions(self, dimensions: int | None, param: str = "dimensions") -> None:
        """Raises InvalidRequest unless the model's vectors may be cut to this length."""
        plan, name = self.plan, self.model.name
        if dimensions is None:
            return
        if plan.task is not Task.EMBED or not plan.is_matryoshka:
            raise InvalidRequest(
                f"{name!r} was not trained for shorter vectors (Matryoshka): leave {param} out.", param=param
            )
        if dimensions > plan.embedding_size:
            raise InvalidRequest(
                f"{param} is {dimensions}; {name!r} has vectors of {plan.embedding_size}.", param=param
            )
        if plan.matryoshka_dimensions and dimensions not in plan.matryoshka_dimensions:
            possible = ", ".join(map(str, plan.matryoshka_dimensions))
            raise InvalidRequest(
                f"{param} is {dimensions}; {name!r} was trained for {possible}.", param=param
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
        """The values of each input, in order. `param` is where inputs stand in the body, for errors.

        Raises InvalidRequest, PromptTooLong, QueueFull and what the engine raises.
        """
        self._check_lengths(inputs, param)
        self.check_room(len(inputs))
        choose_request_id(request_id)
        arrival_time = time.monotonic()
        requests = [
            PoolingRequest(
                request_id=new_sequence_id(),
                token_ids=one.token_ids,
                type_ids=one.type_ids,
                dimensions=dimensions,
                use_activation=use_activation,
                priority=priority,
                arrival_time=arrival_time,
            )
            for one in inputs
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

    def _within_reason(self, texts: Sequence[Text], param: str, cut: Cut | None) -> Sequence[Text]:
        """Texts of so many characters that they can't fit are refused, or cut, without a look at each."""
        most = self.plan.max_model_len * _CHARACTERS_PER_TOKEN + _CHARACTERS_BESIDE
        longest = max(len(part) for text in texts for part in ([text] if isinstance(text, str) else text))
        if longest <= most:
            return texts
        if cut is None:
            raise PromptTooLong(
                f"This model's maximum context length is {self.plan.max_model_len} tokens. However, {param} "
                f"has a text of {longest} characters, of which at most {most} are read for so many tokens. "
                f"{_REMEDY}",
                param=param,
            )
        part = slice(most) if cut.side == "right" else slice(-most, None)
        return [text[part] if isinstance(text, str) else (text[0][part], text[1][part]) for text in texts]

    def _check_lengths(self, inputs: Sequence[Encoded], param: str) -> None:
        limit = self.plan.max_model_len
        for index, one in enumerate(inputs):
            where = param if len(inputs) == 1 else f"{param}[{index}]"
            if not one.token_ids:
                raise InvalidRequest(f"{where} is empty: it has to hold at least one token.", param=where)
            if len(one.token_ids) > limit:
                raise PromptTooLong(
                    f"This model's maximum context length is {limit} tokens. However, you requested "
                    f"{len(one.token_ids)} tokens in {where}. {_REMEDY}",
                    param=where,
                )
