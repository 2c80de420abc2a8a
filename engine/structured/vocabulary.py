"""The tokenizer's vocabulary in the compiler's form: the bytes that each token stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from engine.text.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"


def read_vocabulary(tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
    """`vocab_size` is the logits' width. Takes a second or two for a large vocabulary."""
    from llguidance import LLTokenizer, TokenizerWrapper

    table = _Table(tokenizer, vocab_size, eos_token_ids)
    return LLTokenizer(TokenizerWrapper(table), n_vocab=len(table.tokens), eos_token=table.ends)


class _Table:
    """What the compiler asks of a tokenizer. Special tokens are no text, so that no grammar accepts them."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        described: dict[str, Any] = json.loads(tokenizer.fast.to_str())
        added = {token["id"]: token for token in described.get("added_tokens", [])}
        to_bytes = _reader(described)
        # Without end tokens, one beyond the words of a mask, so that the engine never sees its bit.
        self.ends = list(eos_token_ids) or [-(-vocab_size // 32) * 32]
        self.eos_token_id = self.ends[0]
        self._tokenizer = tokenizer
        self.tokens = [b""] * max(vocab_size, *(end + 1 for end in self.ends), 0)
        for spelling, token_id in tokenizer.fast.get_vocab(with_added_tokens=True).items():
            if token_id < vocab_size:
                self.tokens[token_id] = spelling.encode() if token_id in added else to_bytes(spelling)
        specials = {number for number, token in added.items() if token["special"] and number < vocab_size}
        specials |= set(self.ends)
        self.special_token_ids = sorted(specials)
        for token_id in specials:
            self.tokens[token_id] = b"<%d>" % token_id

    def __call__(self, text: bytes) -> list[int]:
        return list(self._tokenizer.encode(text.decode(errors="replace"), add_special_tokens=False))


def _reader(described: dict[str, Any]) -> Callable[[str], bytes]:
    """From a token's spelling in the vocabulary to its bytes."""
    parts = _types_of(described.get("decoder")) | _types_of(described.get("pre_tokenizer"))
    if "ByteLevel" in parts:
        return _byte_level
    return _byte_fallback if "ByteFallback" in parts else str.encode


def _byte_level(spelling: str) -> bytes:
    return b"".join(_OF_CHARACTER.get(character, character.encode()) for character in spelling)


def _byte_fallback(spelling: str) -> bytes:
    found = _BYTE.fullmatch(spelling)
    return bytes([int(found[1], 16)]) if found else spelling.replace(_SPACE, " ").encode()


def _characters_of_bytes() -> dict[str, bytes]:
    """How byte-level vocabularies spell bytes: printable ones as themselves, others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printable]
    plain = {chr(byte): bytes([byte]) for byte in printable}
    return plain | {chr(0x100 + index): bytes([byte]) for index, byte in enumerate(others)}


_OF_CHARACTER = _characters_of_bytes()


def _types_of(part: Any) -> set[str]:
    """The types of a tokenizer's part and of the parts in it."""
    if isinstance(part, dict):
        inner = set().union(*(_types_of(value) for value in part.values()))
        return inner | ({part["type"]} if isinstance(part.get("type"), str) else set())
    return set().union(*(_types_of(item) for item in part)) if isinstance(part, list) else set()
