"""Tokenizes and truncates texts and pairs of texts. Knows nothing of requests or models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tokenizers import Encoding

from engine.errors import InvalidRequest
from engine.text.tokenizer import ENCODED_TOGETHER, Tokenizer, batches_of

Side: TypeAlias = Literal["left", "right"]
Text: TypeAlias = str | tuple[str, str]  # a text, or a pair


@dataclass(frozen=True, slots=True)
class Cut:
    """Truncate inputs to `max_tokens`, including special tokens, on this side."""

    max_tokens: int
    side: Side


@dataclass(frozen=True, slots=True)
class Encoded:
    token_ids: list[int]
    type_ids: list[int] | None = None  # parallel: 1 in the second text of a pair; None = 0


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[Text], *, add_special_tokens: bool, cut: Cut | None
) -> list[Encoded]:
    """Tokenize in batches, on all threads. Raises InvalidRequest for invalid Unicode."""
    return [
        encoded
        for batch in batches_of(texts, ENCODED_TOGETHER, _length)
        for encoded in _encode_batch(tokenizer, batch, add_special_tokens, cut)
    ]


def _length(text: Text) -> int:
    return len(text) if isinstance(text, str) else len(text[0]) + len(text[1])


def _encode_batch(
    tokenizer: Tokenizer, texts: Sequence[Text], add_special_tokens: bool, cut: Cut | None
) -> list[Encoded]:
    try:
        encodings = tokenizer.fast.encode_batch(list(texts), add_special_tokens=add_special_tokens)
    except (UnicodeEncodeError, TypeError) as error:
        raise InvalidRequest("A text is not valid Unicode: it contains an unpaired surrogate.") from error
    if cut is not None:
        encodings = [
            _encode_cut(tokenizer, text, cut, add_special_tokens)
            if len(encoding) > cut.max_tokens
            else encoding
            for text, encoding in zip(texts, encodings, strict=True)
        ]
    return [_encoded(encoding, text, cut) for encoding, text in zip(encodings, texts, strict=True)]


def cut_tokens(token_ids: list[int], cut: Cut) -> list[int]:
    if len(token_ids) <= cut.max_tokens:
        return token_ids
    return token_ids[: cut.max_tokens] if cut.side == "right" else token_ids[-cut.max_tokens :]


def cut_text(tokenizer: Tokenizer, text: str, max_tokens: int) -> str:
    """The beginning of a text, of at most `max_tokens` tokens; 0 = all of it."""
    if not max_tokens or len(text) <= max_tokens:
        return text
    offsets = tokenizer.fast.encode(text, add_special_tokens=False).offsets
    return text if len(offsets) <= max_tokens else text[: offsets[max_tokens - 1][1]]


def _encoded(encoding: Encoding, text: Text, cut: Cut | None) -> Encoded:
    token_ids = list(encoding.ids)
    if cut is not None:  # if not even the special tokens fit
        token_ids = cut_tokens(token_ids, cut)
    if isinstance(text, str):
        return Encoded(token_ids)
    return Encoded(token_ids, list(encoding.type_ids)[: len(token_ids)])


def _encode_cut(tokenizer: Tokenizer, text: Text, cut: Cut, add_special_tokens: bool) -> Encoding:
    """Truncate before special tokens are added, so that none of them is lost."""
    fast = tokenizer.fast
    texts = (text,) if isinstance(text, str) else text
    parts = [fast.encode(part, add_special_tokens=False) for part in texts]
    num_special = fast.num_special_tokens_to_add(len(parts) == 2) if add_special_tokens else 0
    lengths = _shorten([len(part) for part in parts], max(cut.max_tokens - num_special, 0))
    for part, length in zip(parts, lengths, strict=True):
        part.truncate(length, direction=cut.side)
    second = parts[1] if len(parts) == 2 else None
    return fast.post_process(parts[0], second, add_special_tokens=add_special_tokens)


def _shorten(lengths: list[int], room: int) -> list[int]:
    """Shorten the longer text of a pair first, until both have the same length."""
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    first, second = lengths
    if first <= second:
        first = min(first, max(room // 2, room - second))
        return [first, min(second, room - first)]
    second = min(second, max(room // 2, room - first))
    return [min(first, room - second), second]
