"""A tokenizer's vocabulary as xgrammar wants it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.tokenizer import Tokenizer

if TYPE_CHECKING:
    from xgrammar import TokenizerInfo


def tokenizer_info(tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> TokenizerInfo:
    """Special tokens get no text, so that no grammar lets them pass for their spelling."""
    from xgrammar import TokenizerInfo, VocabType

    described: dict[str, Any] = json.loads(tokenizer.fast.to_str())
    spellings = [""] * min(vocab_size, tokenizer.vocab_size)
    for spelling, token_id in tokenizer.fast.get_vocab(with_added_tokens=True).items():
        if token_id < len(spellings):
            spellings[token_id] = spelling
    for token in described.get("added_tokens", []):
        if token["special"] and token["id"] < len(spellings):
            spellings[token["id"]] = ""
    kinds = {
        "ByteLevel": VocabType.BYTE_LEVEL,
        "ByteFallback": VocabType.BYTE_FALLBACK,
    }
    parts = _types_of(described.get("decoder")) | _types_of(described.get("pre_tokenizer"))
    return TokenizerInfo(
        spellings,
        next((kind for name, kind in kinds.items() if name in parts), VocabType.RAW),
        vocab_size=vocab_size,
        stop_token_ids=list(eos_token_ids),
        add_prefix_space=_adds_space(described),
    )


def _types_of(part: Any) -> set[str]:
    """The types of a tokenizer's part and of those in it."""
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
