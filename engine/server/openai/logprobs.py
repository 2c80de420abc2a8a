"""Writes logprobs in OpenAI's two formats, and in vLLM's format for prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from engine.core.types import PositionLogprobs, TokenLogprob
from engine.server.http.large_work import GilThrottle
from engine.server.openai.packed_logprobs import PackedLogprobs, Rows
from engine.text.tokenizer import Tokenizer

T = TypeVar("T")

_LOWEST = -9999.0  # JSON has no infinity; vLLM writes the same
_REPLACEMENT = "\ufffd"


class LogprobsWriter:
    """For one response: tracks each choice's text offset."""

    def __init__(self, tokenizer: Tokenizer, *, as_token_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_token_ids = as_token_ids
        self._throttle = GilThrottle()
        self._texts: dict[int, str] = {}  # by token id: likely tokens occur again and again
        self._offsets: dict[int, int] = {}
        self._bytes: dict[int, list[int]] = {}

    def completion(self, index: int, positions: Sequence[PositionLogprobs | None]) -> dict[str, Any]:
        """The legacy object of four parallel lists. None is the prompt's first token."""
        tokens: list[str] = []
        offsets: list[int] = []
        chosen: list[float | None] = []
        offset = self._offsets.get(index, 0)
        for position in positions:
            text = "" if position is None else self._text(position.chosen.token_id)
            tokens.append(text)
            offsets.append(offset)
            offset += len(text)
            chosen.append(None if position is None else _finite(position.chosen.logprob))
        self._offsets[index] = offset
        top = _rows(positions, lambda position: None if position is None else self._by_text(position))
        return {"text_offset": offsets, "token_logprobs": chosen, "tokens": tokens, "top_logprobs": top}

    def echoed(
        self, index: int, prompt: Sequence[int], positions: Sequence[PositionLogprobs | None]
    ) -> dict[str, Any]:
        """Like `completion` for the prompt's tokens; the first has text but no logprob."""
        written = self.completion(index, positions)
        first = self._text(prompt[0])
        written["tokens"][0] = first
        written["text_offset"][1:] = [offset + len(first) for offset in written["text_offset"][1:]]
        self._offsets[index] += len(first)
        return written

    def chat(self, positions: Sequence[PositionLogprobs]) -> dict[str, Any]:
        return {"content": _rows(positions, self._position), "refusal": None}

    def _position(self, position: PositionLogprobs) -> dict[str, Any]:
        self._throttle.pause()
        top = [self._entry(token) for token in position.top]
        return {**self._entry(position.chosen), "top_logprobs": top}

    def prompt(self, positions: Sequence[PositionLogprobs | None]) -> list[dict[str, Any] | None]:
        """One object per prompt token, keyed by token id."""
        return [None if position is None else self._by_id(position) for position in positions]

    def _by_text(self, position: PositionLogprobs) -> dict[str, float]:
        self._throttle.pause()
        tokens = {token.token_id: token for token in (*position.top, position.chosen)}
        return {self._text(token.token_id): _finite(token.logprob) for token in tokens.values()}

    def _by_id(self, position: PositionLogprobs) -> dict[str, Any]:
        self._throttle.pause()
        return {
            str(token.token_id): {
                "logprob": _finite(token.logprob),
                "rank": token.rank,
                "decoded_token": self._decoded(token.token_id),
            }
            for token in (position.chosen, *position.top)
        }

    def _entry(self, token: TokenLogprob) -> dict[str, Any]:
        text = self._text(token.token_id)
        raw = self._bytes.get(token.token_id)
        if raw is None:
            as_bytes = text.encode() if self._as_token_ids else token_bytes(self._tokenizer, token.token_id)
            raw = self._bytes[token.token_id] = list(as_bytes)
        return {"token": text, "logprob": _finite(token.logprob), "bytes": raw}

    def _text(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_token_ids else self._decoded(token_id)

    def _decoded(self, token_id: int) -> str:
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text


def _rows(positions: Sequence[T], make: Callable[[T], Any]) -> Any:
    """A JSON list; for packed logprobs, one whose values are created while it is written."""
    if isinstance(positions, PackedLogprobs):
        return Rows(positions, make)
    return [make(position) for position in positions]


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """The bytes of a token's text, or its own bytes if it is part of a character."""
    text = tokenizer.decode([token_id], skip_special_tokens=False)
    if _REPLACEMENT not in text:
        return text.encode()
    (spelling,) = tokenizer.token_strings([token_id])
    if spelling.startswith("<0x") and spelling.endswith(">"):  # byte fallback of SentencePiece
        return bytes.fromhex(spelling[3:-1])
    table = _byte_of_character()
    if all(character in table for character in spelling):
        return bytes(table[character] for character in spelling)
    return text.encode()


@cache
def _byte_of_character() -> dict[str, int]:
    """Characters of byte-level vocabularies: printable bytes are themselves, others start at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)
