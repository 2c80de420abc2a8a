"""The optional details of choices: logprobs and token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from engine.core.types import PositionLogprobs
from engine.server.generation.generation import ChoiceDelta
from engine.server.openai.logprobs import LogprobsWriter
from engine.server.protocol.generation_body import GenerationBody
from engine.text.tokenizer import Tokenizer


class ChoiceDetails:
    """The details of one response. Takes a choice's deltas in order, one by one or all at once."""

    def __init__(
        self,
        body: GenerationBody,
        tokenizer: Tokenizer,
        *,
        echo: bool = False,
        prompt_text: str | None = None,
    ) -> None:
        """`echo`: logprobs include the prompt's. `prompt_text`: the rendered prompt, if requested."""
        self._has_logprobs = body.num_logprobs is not None
        self._has_token_ids = body.return_token_ids
        self._has_prompt_logprobs = body.prompt_logprobs is not None
        self._echo = echo
        self._prompt_text = {} if prompt_text is None else {"prompt_text": prompt_text}
        self._writer = LogprobsWriter(tokenizer, as_token_ids=body.return_tokens_as_token_ids)
        self.any_requested = self._has_logprobs or self._has_token_ids or self._has_prompt_logprobs

    def completion_logprobs(self, deltas: Sequence[ChoiceDelta]) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        index = deltas[0].choice.index
        positions = _logprobs(deltas)
        echoed = _prompt_logprobs(deltas) if self._echo else None
        if echoed is None:
            return self._writer.completion(index, positions)
        prompt = deltas[0].choice.request.prompt_token_ids
        before = self._writer.echoed(index, prompt, echoed)
        after = self._writer.completion(index, positions)
        return {name: before[name] + after[name] for name in before}

    def chat_logprobs(self, deltas: Sequence[ChoiceDelta]) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        return self._writer.chat(_logprobs(deltas))

    def token_ids(self, deltas: Sequence[ChoiceDelta], *, is_first: bool = False) -> dict[str, Any]:
        if not self._has_token_ids:
            return {}
        fields: dict[str, Any] = {"token_ids": [token for delta in deltas for token in delta.token_ids]}
        return {**fields, **self.prompt_fields(deltas[0])} if is_first else fields

    def prompt_fields(self, delta: ChoiceDelta) -> dict[str, Any]:
        """The fields about the prompt, sent once."""
        if not self._has_token_ids:
            return self._prompt_text
        return {"prompt_token_ids": list(delta.choice.request.prompt_token_ids), **self._prompt_text}

    def prompt_logprobs(self, deltas: Iterable[ChoiceDelta]) -> dict[str, Any]:
        if not self._has_prompt_logprobs:
            return {}
        positions = _prompt_logprobs(deltas)
        return {"prompt_logprobs": None if positions is None else self._writer.prompt(positions)}


def _logprobs(deltas: Sequence[ChoiceDelta]) -> Sequence[PositionLogprobs]:
    logprobs = [delta.logprobs for delta in deltas if delta.logprobs]
    return (
        logprobs[0] if len(logprobs) == 1 else [position for positions in logprobs for position in positions]
    )


def _prompt_logprobs(deltas: Iterable[ChoiceDelta]) -> Sequence[PositionLogprobs | None] | None:
    return next((delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs is not None), None)
