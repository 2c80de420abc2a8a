"""Tokenizers of GGUF files: they give the tokens that the model was trained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import CheckpointError, UnsupportedModel
from engine.text.gguf_tokenizer import gguf_tokenizer, merges_from_scores
from engine.text.tokenizer import Tokenizer, load_tokenizer

DEMO = Path(__file__).parents[3] / "models" / "berth-demo"
TEXTS = [
    "Hello, world!",
    "  two  spaces",
    "naïve café 12345",
    "I'll say: it's 10 o'clock\n\n",
    "日本語",
    "<|im_start|>user",
]


def byte_level(**changes: Any) -> dict[str, Any]:
    """The demo model's tokenizer as metadata."""
    saved = json.loads((DEMO / "tokenizer.json").read_text())
    ids = {**saved["model"]["vocab"], **{token["content"]: token["id"] for token in saved["added_tokens"]}}
    tokens = [token for token, _ in sorted(ids.items(), key=lambda item: item[1])]
    special = {token["content"] for token in saved["added_tokens"] if token["special"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in saved["model"]["merges"]]
    metadata: dict[str, Any] = {
        "model": "gpt2",
        "pre": "default",
        "tokens": tokens,
        "token_type": [3 if token in special else 1 for token in tokens],
        "merges": merges,
        "eos_token_id": ids.get("<|im_end|>", 0),
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}


def built(metadata: dict[str, Any]) -> Tokenizer:
    return gguf_tokenizer(Path("m.gguf"), metadata)


def test_byte_level_tokens_are_those_of_the_models_own_tokenizer() -> None:
    own, read = load_tokenizer(DEMO), built(byte_level())
    for text in TEXTS:
        expected = own.encode(text, add_special_tokens=False)
        assert read.encode(text, add_special_tokens=False) == expected, text
        assert read.decode(expected, skip_special_tokens=False) == own.decode(
            expected, skip_special_tokens=False
        )
    assert read.vocab_size == own.vocab_size


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("llama-bpe", ["I", "'LL", " pay", " ", "123", "45", "!!\n"]),
        ("qwen2", ["I", "'LL", " pay", " ", "1", "2", "3", "4", "5", "!!\n"]),
        ("tekken", ["I", "'LL", " pay", " ", "1", "2", "3", "4", "5", "!!\n"]),
        ("gpt-4o", ["I'LL", " pay", " ", "123", "45", "!!\n"]),
        ("smollm", ["I", "'", "LL", " pay", " ", "1", "2", "3", "4", "5", "!!", "\n"]),
        ("default", ["I", "'", "LL", " pay", " 12345", "!!", "\n"]),
    ],
)
def test_text_is_split_as_the_file_says(pre: str, words: list[str]) -> None:
    fast = built(byte_level(pre=pre)).fast
    text = "I'LL pay 12345!!\n"
    assert [text[start:end] for _, (start, end) in fast.pre_tokenizer.pre_tokenize_str(text)] == words


SPELLINGS = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "▁",
    "a",
    "b",
    "c",
    "ab",
    "▁a",
]
SPELLINGS += ["▁ab", "abc", "bc", "▁abc"]


def sentence_piece(**changes: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "model": "llama",
        "tokens": SPELLINGS,
        "scores": [0.0] * 259 + [-float(at) for at in range(len(SPELLINGS) - 259)],
        "token_type": [2, 3, 3, *[6] * 256, *[1] * (len(SPELLINGS) - 259)],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}


def test_sentencepiece_merges_the_best_token_first() -> None:
    read = built(sentence_piece())

    def spellings(text: str) -> list[str]:
        return read.token_strings(read.encode(text, add_special_tokens=True))

    assert spellings("abc") == ["<s>", "▁abc"]
    assert spellings("ba") == ["<s>", "▁", "b", "a"]
    assert spellings("é") == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert read.decode(read.encode("abc é", add_special_tokens=False), skip_special_tokens=True) == "abc é"


def test_sentencepiece_without_a_space_in_front() -> None:
    read = built(sentence_piece(add_space_prefix=False, add_bos_token=False, add_eos_token=True))
    assert read.token_strings(read.encode("ab ab", add_special_tokens=True)) == ["ab", "▁ab", "</s>"]


def test_merges_follow_from_scores() -> None:
    tokens = ["a", "b", "ab", "abb", "bb"]
    assert merges_from_scores(tokens, [0.0, 0.0, -2.0, -3.0, -1.0]) == [
        ("b", "b"),
        ("a", "b"),
        ("a", "bb"),
        ("ab", "b"),
    ]


def test_special_tokens_and_templates() -> None:
    metadata = {
        **sentence_piece(),
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.chat_template.tool_use": "{{ tools }}",
    }
    read = built(metadata)
    assert read.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert read.chat_templates == {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    assert read.eos_token_id == 2


def test_user_defined_tokens_stay_whole_and_are_not_special() -> None:
    metadata = byte_level()
    types = metadata["tokenizer.ggml.token_type"]
    token_id = max(at for at in range(300, len(types)) if types[at] == 1)
    token = metadata["tokenizer.ggml.tokens"][token_id] = "<think>"
    types[token_id] = 4
    metadata["tokenizer.ggml.merges"] = metadata["tokenizer.ggml.merges"][:1]
    read = built(metadata)
    assert read.encode(f"a{token}b", add_special_tokens=False)[1] == token_id
    assert token in read.decode([token_id], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        (byte_level(tokens=None), "has no tokenizer.ggml.tokens"),
        (byte_level(tokens="abc"), "has no tokenizer.ggml.tokens"),
        (byte_level(tokens=[1, 2]), "tokenizer.ggml.tokens isn't a list of str"),
        (byte_level(token_type=[1]), "types for 1"),
        (byte_level(token_type=1), "token_type that is no array"),
        (byte_level(merges=["a b c"]), "a merge that isn't of two tokens"),
        (byte_level(merges=["qqqq zzzz"]), "can't be read"),
        (byte_level(eos_token_id=99_999), "eos_token_id is 99999"),
        (sentence_piece(scores=[1.0]), "scores for 1"),
        (sentence_piece(scores=None), "has no tokenizer.ggml.scores"),
    ],
)
def test_what_does_not_fit_is_named(metadata: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        built(metadata)
    assert named in caught.value.message


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"model": "rwkv"}, "kind 'rwkv'"), ({"pre": "new-bpe"}, "splits text as 'new-bpe'")],
)
def test_kinds_that_would_give_other_tokens_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        built(byte_level(**changes))
