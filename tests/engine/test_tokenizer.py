"""A checkpoint's tokenizer files, valid and invalid."""

from __future__ import annotations

import json
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
