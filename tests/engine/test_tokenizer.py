"""A checkpoint's tokenizer files, valid and invalid."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from engine.errors import CheckpointError, InvalidRequest
from engine.text.tokenizer import load_tokenizer
from tests.engine.server.tokenizers_for_tests import (
    TEMPLATE,
    byte_level_tokenizer,
    metaspace_tokenizer,
    write_tokenizer_files,
)


def test_special_tokens_are_added_as_the_post_processor_does(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer_files(tmp_path, metaspace_tokenizer()))
    with_special = tokenizer.encode("hello", add_special_tokens=True)
    assert tokenizer.token_strings(with_special) == ["<s>", "▁hello"]
    assert tokenizer.encode("hello", add_special_tokens=False) == with_special[1:]


def test_special_tokens_within_a_text_are_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer_files(tmp_path, byte_level_tokenizer()))
    assert tokenizer.encode("<s>a<eos>", add_special_tokens=False)[::2] == [1, 0]
    assert tokenizer.eos_token_id == 0
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "<eos>"}


def test_limits_meant_for_training_do_not_hold(tmp_path: Path) -> None:
    saved = byte_level_tokenizer()
    saved.enable_truncation(4)
    saved.enable_padding(length=8)
    tokenizer = load_tokenizer(write_tokenizer_files(tmp_path, saved))
    assert len(tokenizer.encode("abcdef", add_special_tokens=False)) == 6
    assert len(tokenizer.encode("a", add_special_tokens=False)) == 1


def test_text_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer_files(tmp_path, byte_level_tokenizer()))
    with pytest.raises(InvalidRequest, match="not valid Unicode"):
        tokenizer.encode("a\ud800", add_special_tokens=False)


def test_chat_templates_by_name_and_from_files(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    write_tokenizer_files(tmp_path, byte_level_tokenizer(), chat_template=named)
    assert load_tokenizer(tmp_path).chat_templates == {"default": "A", "tool_use": "B"}
    (tmp_path / "chat_template.jinja").write_text("C")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("D")
    assert load_tokenizer(tmp_path).chat_templates == {"default": "C", "tool_use": "B", "rag": "D"}


def test_one_template_in_the_configuration(tmp_path: Path) -> None:
    write_tokenizer_files(tmp_path, byte_level_tokenizer())
    assert load_tokenizer(tmp_path).chat_templates == {"default": TEMPLATE}


def test_special_tokens_as_objects(tmp_path: Path) -> None:
    write_tokenizer_files(tmp_path, byte_level_tokenizer(), eos_token={"content": "<pad>", "lstrip": False})
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.special_tokens["eos_token"], tokenizer.eos_token_id) == ("<pad>", 2)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no tokenizer"),
        ({"tokenizer.json": "{"}, "tokenizer.json can't be read"),
        ({"tokenizer_config.json": "{"}, "tokenizer_config.json can't be read"),
        ({"tokenizer_config.json": "[]"}, "doesn't contain a JSON object"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(tmp_path)


def test_without_tokenizer_json_transformers_is_asked(tmp_path: Path) -> None:
    """A GPT-2 tokenizer in its old files: a vocabulary and merges."""
    spellings = byte_level_tokenizer().get_vocab()
    (tmp_path / "vocab.json").write_text(json.dumps({**spellings, "<|endoftext|>": len(spellings)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = load_tokenizer(tmp_path)
    token_ids = tokenizer.encode("abc é", add_special_tokens=False)
    assert tokenizer.decode(token_ids, skip_special_tokens=True) == "abc é"


def sentencepiece_vocabulary() -> bytes:
    """As SentencePiece saves it, for byte-pair encoding: <unk>, <s>, </s>, all bytes and a few pieces."""
    special = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    words = ["▁a", "he", "ll", "hell", "hello", "▁hello", "▁", "h", "e", "l", "o", "a"]
    pieces = [
        *((piece, 0.0, kind) for piece, kind in special),
        *((w, -float(n), 1) for n, w in enumerate(words)),
    ]
    trainer = b"\x18\x02" + b"\x98\x02\x01"  # model_type 2, byte_fallback
    return b"".join(_field(0x0A, _piece(*piece)) for piece in pieces) + _field(0x12, trainer)


def _piece(spelling: str, score: float, kind: int) -> bytes:
    return _field(0x0A, spelling.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])


def _field(tag: int, content: bytes) -> bytes:
    """Of a protocol buffer: a message or a string of up to 127 bytes."""
    return bytes([tag, len(content)]) + content


def write_vocabulary(directory: Path, name: str, content: bytes) -> None:
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}))
    (directory / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "package"),
    [
        ("tokenizer.model", sentencepiece_vocabulary(), "sentencepiece"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "tiktoken"),
        ("qwen.tiktoken", b"IQ== 0\nIg== 1\n", "tiktoken"),
    ],
)
def test_a_missing_package_is_named_in_one_sentence(
    name: str, content: bytes, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.text.tokenizer.find_spec", lambda name: None)
    write_vocabulary(tmp_path, name, content)
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(tmp_path)
    assert f"{name} can be read only with the package {package}: `pip install {package}`" in str(caught.value)


def test_a_sentencepiece_vocabulary_is_converted(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    write_vocabulary(tmp_path, "tokenizer.model", sentencepiece_vocabulary())
    tokenizer = load_tokenizer(tmp_path)
    token_ids = tokenizer.encode("hello a é", add_special_tokens=False)
    assert tokenizer.token_strings(token_ids)[:2] == ["▁hello", "▁a"]
    assert tokenizer.decode(token_ids, skip_special_tokens=True) == "hello a é"
    assert tokenizer.end_token_ids == (2,)


def test_end_tokens_are_the_tokenizers_then_those_of_the_models_configuration(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 7}}))
    files = write_tokenizer_files(tmp_path, byte_level_tokenizer())
    assert load_tokenizer(files).end_token_ids == (0,)
    assert load_tokenizer(files, model=model).end_token_ids == (0, 7)
    assert load_tokenizer(files, model=model, overrides={"eos_token_id": [5, 0]}).end_token_ids == (0, 5)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 0, 8]}))
    assert load_tokenizer(files, model=model).end_token_ids == (0, 9, 8)
