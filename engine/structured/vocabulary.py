"""A tokenizer's vocabulary in xgrammar's form, and serialised for the process that runs xgrammar."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xgrammar import TokenizerInfo

    from engine.text.tokenizer import Tokenizer

_ENCODINGS = {
    "ByteLevel": "BYTE_LEVEL",
    "ByteFallback": "BYTE_FALLBACK",
}  # by the tokenizer's part that implies it


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Special tokens have an empty spelling, so that no grammar accepts them as their text."""

    spellings: list[str]
    encoding: str  # the name of a VocabType
    vocab_size: int
    eos_token_ids: list[int]
    adds_space: bool

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Vocabulary:
        return cls(**json.loads(data))

    def tokenizer_info(self) -> TokenizerInfo:
        from xgrammar import TokenizerInfo, VocabType

        return TokenizerInfo(
            self.spellings,
            VocabType[self.encoding],
            vocab_size=self.vocab_size,
            stop_token_ids=self.eos_token_ids,
            add_prefix_space=self.adds_space,
        )


def read_vocabulary(tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> Vocabulary:
    described: dict[str, Any] = json.loads(tokenizer.fast.to_str())
    spellings = [""] * min(vocab_size, tokenizer.vocab_size)
    for spelling, token_id in tokenizer.fast.get_vocab(with_added_tokens=True).items():
        if token_id < len(spellings):
            spellings[token_id] = spelling
    for token in described.get("added_tokens", []):
        if token["special"] and token["id"] < len(spellings):
            spellings[token["id"]] = ""
    parts = _types_of(described.get("decoder")) | _types_of(described.get("pre_tokenizer"))
    return Vocabulary(
        spellings,
        next((encoding for part, encoding in _ENCODINGS.items() if part in parts), "RAW"),
        vocab_size,
        list(eos_token_ids),
        _adds_space(described),
    )


def _types_of(part: Any) -> set[str]:
    """The types of a tokenizer's part and of the parts in it."""
    if isinstance(part, dict):
        inner = set().union(*(_types_of(value) for value in part.values()))
        return inner | ({part["type"]} if isinstance(part.get("type"), str) else set())
    return set().union(*(_types_of(item) for item in part)) if isinstance(part, list) else set()


def _adds_space(described: dict[str, Any]) -> bool:
    """Whether a text's first token begins with a space that isn't in the text."""
    normalizers = _parts(described.get("normalizer"))
    if any(part.get("type") == "Prepend" for part in normalizers):
        return True
    return any(
        part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never"
        for part in _parts(described.get("pre_tokenizer"))
    )


def _parts(part: Any) -> list[dict[str, Any]]:
    if not isinstance(part, dict):
        return []
    return [part, *(inner for name in ("normalizers", "pretokenizers") for inner in part.get(name, []))]
