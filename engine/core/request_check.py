"""Which requests the engine can run: lengths against the context, token ids against the vocabulary.

The parameters of a request that passes can't make a step fail; the tensors of a whole batch rely on that.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable
from itertools import chain
from typing import Any

from engine.core.types import EngineRequest
from engine.errors import InvalidRequest, PromptTooLong

_MAX_PRIORITY = 1 << 31  # absolute; the range of vLLM's own field


class RequestCheck:
    """Safe in any thread: beside constants, it has only one reference, to the lists that passed last."""

    def __init__(self, max_model_len: int, vocab_size: int) -> None:
        self.max_model_len = max_model_len  # tokens of prompt and output together
        self.vocab_size = vocab_size
        self._passed: tuple[Any, ...] = ()  # the choices of a request share their prompt and lists

    def check(self, request: EngineRequest) -> None:
        """Raise InvalidRequest, naming the field at fault, if the request could never run."""
        self._check_lengths(request)
        if abs(request.priority) > _MAX_PRIORITY:
            raise InvalidRequest(
                f"priority is {request.priority}; it must be {-_MAX_PRIORITY} to {_MAX_PRIORITY}.",
                param="priority",
            )
        params = request.params
        bias = params.logit_bias or None
        lists = (request.prompt_token_ids, bias, params.bad_words, params.allowed_token_ids)
        if not self._passed or not all(map(operator.is_, lists, self._passed)):
            self._check_lists(request)
            self._passed = lists

    def _check_lists(self, request: EngineRequest) -> None:
        params = request.params
        self._check_ids(request.prompt_token_ids, "prompt")
        self._check_ids(params.logit_bias.keys(), "logit_bias")
        self._check_ids(params.logprob_token_ids, "logprob_token_ids")
        self._check_ids(tuple(chain.from_iterable(params.bad_words)), "bad_words")
        if not all(params.bad_words):
            raise InvalidRequest("bad_words contains a word without tokens.", param="bad_words")
        if params.allowed_token_ids is not None:
            if not params.allowed_token_ids:
                raise InvalidRequest(
                    "allowed_token_ids is empty: it must allow at least one token.",
                    param="allowed_token_ids",
                )
            self._check_ids(params.allowed_token_ids, "allowed_token_ids")

    def _check_lengths(self, request: EngineRequest) -> None:
        num_tokens, max_tokens = len(request.prompt_token_ids), request.params.max_tokens
        if not num_tokens:
            raise InvalidRequest("The prompt is empty: it must have at least one token.", param="prompt")
        if max_tokens < 0:
            raise InvalidRequest(f"max_tokens is {max_tokens}; it must be at least 0.", param="max_tokens")
        if num_tokens + min(max_tokens, 1) > self.max_model_len:
            raise PromptTooLong.of(self.max_model_len, num_tokens, min(max_tokens, 1), part="prompt")

    def _check_ids(self, token_ids: Collection[int], param: str) -> None:
        if not token_ids or (min(token_ids) >= 0 and max(token_ids) < self.vocab_size):
            return
        wrong = _first_outside(token_ids, self.vocab_size)
        raise InvalidRequest(
            f"{param} contains the token id {wrong}; this model's are 0 to {self.vocab_size - 1}.",
            param=param,
        )


def _first_outside(token_ids: Iterable[int], vocab_size: int) -> int:
    return next(token for token in token_ids if not 0 <= token < vocab_size)
