"""Which files of a repository are downloaded, and which names are valid."""

from __future__ import annotations

import pytest

from instance_manager.errors import InvalidSpec
from instance_manager.hub.files import check_hub_id, check_revision, needed_files


def test_weights_as_safetensors_and_all_small_files() -> None:
    small = [
        "config.json",
        "tokenizer.json",
        "merges.txt",
        "chat_template.jinja",
        "tokenizer.model",
        "modeling.py",
    ]
    other = [".gitattributes", "README.md", "model.onnx", "logo.png", "model.gguf"]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert needed_files([*small, *other, *shards, "pytorch_model.bin"]) == sorted([*small, *shards])


def test_bin_files_only_where_there_are_no_safetensors() -> None:
    names = ["config.json", "pytorch_model.bin", "training_args.bin", "optimizer.bin"]
    assert needed_files(names) == ["config.json", "pytorch_model.bin"]


def test_the_same_weights_are_not_taken_twice() -> None:
    copies = [
        "original/model.safetensors",
        "metal/model.bin",
        "onnx/config.json",
        "checkpoint-500/model.safetensors",
        "checkpoint-500/config.json",
        "consolidated.safetensors",
    ]
    assert needed_files([*copies, "model.safetensors"]) == ["model.safetensors"]


def test_consolidated_weights_are_taken_where_there_are_no_others() -> None:
    assert needed_files(["consolidated.safetensors", "params.json"]) == [
        "consolidated.safetensors",
        "params.json",
    ]


def test_modules_of_sentence_transformers_and_templates_in_folders() -> None:
    names = [
        "model.safetensors",
        "2_Dense/model.safetensors",
        "1_Pooling/config.json",
        "chat_templates/tool.jinja",
    ]
    assert needed_files(names) == sorted(names)


@pytest.mark.parametrize(
    "names", [[], ["config.json"], ["model.gguf", "config.json"], ["a/b/model.safetensors"]]
)
def test_nothing_at_all_without_weights(names: list[str]) -> None:
    assert needed_files(names) == []


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-0.6B", "a/b_c.d", "x" * 96])
def test_valid_names(name: str) -> None:
    check_hub_id(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a/..",
        "~/x",
        "a/b/c",
        "a b",
        "-rf",
        "a--b",
        "a/b.git",
        "a/b-",
        "a\n",
        "x" * 97,
    ],
)
def test_invalid_names(name: str) -> None:
    with pytest.raises(InvalidSpec, match="isn't a valid model name on the hub") as caught:
        check_hub_id(name)
    assert caught.value.param == "model"


def test_revisions() -> None:
    for revision in ("main", "refs/pr/4", "v1.0", "0123456789abcdef0123456789abcdef01234567"):
        check_revision(revision)
    for revision in ("", "-x", "a/../b", "a b", "x" * 201):
        with pytest.raises(InvalidSpec, match="isn't a valid branch"):
            check_revision(revision)
