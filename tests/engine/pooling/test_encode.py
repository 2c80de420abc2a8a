"""Texts and pairs to tokens, truncated as by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidRequest
from engine.server.pooling.encode import Cut, cut_text, encode_texts
from engine.text.tokenizer import Tokenizer, load_tokenizer

WORDS = ["paris", "is", "the", "capital", "of", "france", "unbelievably", "tokenized", "x", "…"]


@pytest.fixture(scope="module")
def ours(minilm: Path) -> Tokenizer:
    return load_tokenizer(minilm)


@pytest.fixture(scope="module")
def theirs(minilm: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(minilm)


texts = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
parts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


@given(text=texts, max_tokens=st.integers(3, 16))
def test_a_text_is_truncated_as_by_transformers(
    text: str, max_tokens: int, ours: Tokenizer, theirs: Any
) -> None:
    [encoded] = encode_texts(ours, [text], add_special_tokens=True, cut=Cut(max_tokens, "right"))
    assert encoded.token_ids == theirs(text, truncation=True, max_length=max_tokens)["input_ids"]
    assert encoded.type_ids is None


@given(first=parts, second=parts, max_tokens=st.integers(3, 20))
def test_a_pair_is_truncated_as_by_transformers(
    first: str, second: str, max_tokens: int, ours: Tokenizer, theirs: Any
) -> None:
    [encoded] = encode_texts(ours, [(first, second)], add_special_tokens=True, cut=Cut(max_tokens, "right"))
    expected = theirs(first, second, truncation="longest_first", max_length=max_tokens)
    assert encoded.token_ids == expected["input_ids"]
    assert encoded.type_ids == expected["token_type_ids"]


def test_truncation_may_remove_the_left_side(ours: Tokenizer) -> None:
    [whole] = encode_texts(ours, ["paris is the capital"], add_special_tokens=True, cut=None)
    [cut] = encode_texts(ours, ["paris is the capital"], add_special_tokens=True, cut=Cut(4, "left"))
    assert cut.token_ids == [whole.token_ids[0], *whole.token_ids[-3:]]


def test_a_limit_may_be_too_small_for_special_tokens(ours: Tokenizer) -> None:
    [cut] = encode_texts(ours, ["paris is"], add_special_tokens=True, cut=Cut(1, "right"))
    assert len(cut.token_ids) == 1


def test_a_text_is_truncated_between_tokens(ours: Tokenizer) -> None:
    text = "Unbelievably tokenized France"
    for max_tokens in range(1, 9):
        kept = cut_text(ours, text, max_tokens)
        assert text.startswith(kept)
        assert (
            ours.encode(kept, add_special_tokens=False)
            == (ours.encode(text, add_special_tokens=False)[:max_tokens])
        )
    assert cut_text(ours, text, 0) == text


def test_a_lone_surrogate_is_refused(ours: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        encode_texts(ours, ["a", "\ud800"], add_special_tokens=True, cut=None)
