"""Converts tokens to text piece by piece, and searches it for stop strings. Pure; knows nothing of HTTP.

Two guarantees: no piece ends inside a character, and how tokens are split into steps doesn't change the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenizers.decoders import DecodeStream

from engine.text.tokenizer import Tokenizer

_CONTEXT_TOKENS = (
    6  # of the prompt: enough for decoders that look back for a space or an unfinished character
)
_MAX_WAITING_TOKENS = 64  # far more than a character has: bounds the cost of endless special or broken tokens
_MAX_CHARACTER_BYTES = 4
_REPLACEMENT = "\ufffd"


class TextStream:
    """The text of a growing list of tokens. An unfinished character waits for the tokens that complete it."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], *, skip_special_tokens: bool) -> None:
        """The prompt's end is the context: without it, decoders would drop a first space as the text's start.

        There is no context if the prompt ends inside a character, whose bytes would appear in the answer.
        """
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._emitted: list[int] = []  # tokens whose text was returned, as far as decoders look back
        self._waiting: list[int] = []  # tokens whose text was not
        context = prompt[-_CONTEXT_TOKENS:]
        self._start([] if self._decode(context).endswith(_REPLACEMENT) else context)

    def push(self, token_id: int) -> str:
        """The text that this token completes; may be empty."""
        self._waiting.append(token_id)
        try:
            piece: str | None = self._stream.step(self._tokenizer.fast, token_id)
        except Exception:  # the library raises no other kind: later bytes made earlier ones invalid
            return self._flush_waiting()
        if piece is not None:
            self._emitted, self._waiting = self._waiting, []
            return piece
        return "" if len(self._waiting) < _MAX_WAITING_TOKENS else self._flush_whole_characters()

    def flush(self) -> str:
        """The rest if no token follows: an unfinished character becomes U+FFFD."""
        return self._flush_waiting() if self._waiting else ""

    def _flush_whole_characters(self) -> str:
        """The waiting text up to the end of a character: a text may itself contain many U+FFFD.

        They look unfinished, but splitting them would produce more. The split with the fewest U+FFFD is where
        the last character begins.
        """
        ends = range(len(self._waiting), len(self._waiting) - _MAX_CHARACTER_BYTES, -1)
        shown = {end: self._decode(self._emitted + self._waiting[:end]).count(_REPLACEMENT) for end in ends}
        end = min(ends, key=lambda end: (shown[end], -end))
        left = self._waiting[end:]
        del self._waiting[end:]
        return self._flush_waiting() + "".join(map(self.push, left))

    def _start(self, context: Sequence[int]) -> None:
        self._emitted, self._waiting = list(context), []
        self._stream = DecodeStream(skip_special_tokens=self._skip)
        for token_id in context:
            self._stream.step(self._tokenizer.fast, token_id)

    def _flush_waiting(self) -> str:
        """Return the waiting text as it is, and start again."""
        rest = self._decode(self._emitted + self._waiting)[len(self._decode(self._emitted)) :]
        # A token that ends like an unfinished character can't be context: its text would appear twice.
        last = self._waiting[-1:]
        is_clean = bool(rest) and not self._decode(last).endswith(_REPLACEMENT)
        context = last if is_clean else self._emitted
        if rest and not context:  # text was returned, so the next space does not start the text
            context = self._tokenizer.encode("a", add_special_tokens=False)
        self._start(context)
        return rest

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip)


class StopStrings:
    """Finds the first complete stop string in a text that arrives in pieces.

    Holds back exactly what may still become one: the longest suffix of the text that begins a stop string.
    If two are complete at the same character, the one that began first counts.
    """

    def __init__(self, stops: Sequence[str], *, include_in_output: bool = False) -> None:
        self._stops = tuple(stops)
        self._prefixes = [_Prefix(stop) for stop in self._stops]
        self._include = include_in_output
        self._held = ""

    def push(self, piece: str, *, may_end: bool = True) -> tuple[str, str | None]:
        """(text to return, the stop string that ended it or None). Push nothing after a stop string.

        `may_end`: whether a stop string that this piece completes counts.
        """
        if not self._stops:
            return piece, None
        text = self._held + piece
        found = self._find(text, len(self._held)) if may_end else None
        if found is not None:
            start, stop = found
            self._held = ""
            return text[: start + len(stop) if self._include else start], stop
        keep = max(prefix.push(piece) for prefix in self._prefixes)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """The text that was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held

    def _find(self, text: str, num_old: int) -> tuple[int, str] | None:
        """The first stop string that ends after the old characters; earlier ones did not count."""
        matches = [
            (at + len(stop), at, stop)
            for stop in self._stops
            if (at := text.find(stop, max(0, num_old - len(stop) + 1))) >= 0
        ]
        if not matches:
            return None
        _, start, stop = min(matches)
        return start, stop


class _Prefix:
    """How much of a stop string the text so far ends with, at constant cost per character.

    Knuth, Morris and Pratt's automaton.
    """

    def __init__(self, stop: str) -> None:
        self._stop = stop
        self._length = 0
        # By prefix length: the longest shorter prefix that is its suffix. Extended as needed.
        self._shorter = [0, 0]

    def push(self, piece: str) -> int:
        """The length of the longest suffix of the text that is a proper prefix of the stop string."""
        for character in piece:
            self._length = self._after(self._length, character)
            if self._length == len(self._stop):  # a complete one that didn't count
                self._length = self._shorter_of(self._length)
        return self._length

    def _after(self, length: int, character: str) -> int:
        while length and self._stop[length] != character:
            length = self._shorter_of(length)
        return length + 1 if self._stop[length] == character else 0

    def _shorter_of(self, length: int) -> int:
        while len(self._shorter) <= length:
            last = len(self._shorter) - 1
            self._shorter.append(self._after(self._shorter[last], self._stop[last]))
        return self._shorter[length]


class Piece(NamedTuple):
    """The result of some tokens: text to return, how many tokens count, the stop string that ended it."""

    text: str
    num_tokens: int
    stop: str | None = None


class Detokenizer:
    """Converts one sequence's tokens to the text to return.

    A stop string counts if it is complete after `min_tokens` tokens, wherever it began.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int] = (),
        *,
        stops: Sequence[str] = (),
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
        include_stop_in_output: bool = False,
    ) -> None:
        self._text = TextStream(tokenizer, prompt, skip_special_tokens=skip_special_tokens)
        self._stops = StopStrings(stops, include_in_output=include_stop_in_output)
        self._min_tokens = min_tokens
        self._num_tokens = 0

    def push(self, token_ids: Sequence[int]) -> Piece:
        """Add one step's tokens; those after a stop string are neither shown nor counted."""
        shown: list[str] = []
        for count, token_id in enumerate(token_ids, start=1):
            text = self._text.push(token_id)
            self._num_tokens += 1
            if not text:
                continue
            text, stop = self._stops.push(text, may_end=self._num_tokens > self._min_tokens)
            shown.append(text)
            if stop is not None:
                return Piece("".join(shown), count, stop)
        return Piece("".join(shown), len(token_ids))

    def flush(self) -> Piece:
        """The rest, once the last token has been pushed. It may also complete a stop string."""
        rest = self._text.flush()
        text, stop = self._stops.push(rest, may_end=self._num_tokens > self._min_tokens)
        return Piece(text if stop is not None else text + self._stops.flush(), 0, stop)
