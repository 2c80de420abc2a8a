"""Models in Ollama's terms: sizes, digests, times, and GGUF files by what their headers say. Pure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from api.control.ollama import details
from instance_manager.fleet.model_facts import ModelFacts
from instance_manager.fleet.models import Model
from instance_manager.fleet.profiles import ModelProfile

HEADER = {
    "num_parameters": 8_030_261_248,
    "size_label": "8B",
    "block_count": 32,
    "head_count_kv": 8,
    "vocabulary_size": 128256,
    "feed_forward_length": None,
    "license": "llama3",
}
GGUF = ModelFacts(
    format="gguf", family="llama", quantization="Q4_K_M", context_length=8192, outputs=("text",)
)


def model_of(profile: ModelProfile) -> Model:
    return Model(profile.name, profile, 1, lambda: 0.0)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (8_030_261_248, "8.0B"),
        (7_000_000_000, "7B"),
        (137_000_000, "137M"),
        (3_345_664, "3.35M"),
        (125_000, "125K"),
        (9, "9"),
    ],
)
def test_numbers_are_short(count: int, text: str) -> None:
    assert details.human_number(count) == text


def test_a_gguf_file_is_described_by_its_header() -> None:
    assert details.details(GGUF, HEADER) == {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "8.0B",
        "quantization_level": "Q4_K_M",
    }
    assert details.details(GGUF, {"size_label": "8B"})["parameter_size"] == "8B"
    assert details.model_info(GGUF, HEADER) == {
        "general.architecture": "llama",
        "general.parameter_count": 8_030_261_248,
        "llama.context_length": 8192,
        "llama.block_count": 32,
        "llama.attention.head_count_kv": 8,
        "llama.vocab_size": 128256,
    }
    assert details.license_of(GGUF, HEADER) == "llama3"


def test_what_is_unknown_is_empty() -> None:
    assert details.details(ModelFacts(), {})["families"] is None
    assert details.model_info(ModelFacts(), {}) == {}
    assert details.capabilities(ModelFacts()) == ["completion"]
    assert details.parameters(ModelFacts()) == ""
    assert details.license_of(ModelFacts(), {}) is None
    assert details.moment(None) == details.UNKNOWN_TIME


def test_capabilities() -> None:
    facts = ModelFacts(outputs=("text",), inputs=("text", "image", "audio"), tools=True, reasoning=True)
    assert details.capabilities(facts) == ["completion", "tools", "thinking", "vision", "audio"]
    assert details.capabilities(replace(facts, embeddings=True)) == ["embedding"]


def test_the_license_is_among_the_files(tmp_path: Path) -> None:
    (tmp_path / "LICENSE.txt").write_text("Do as you like.")
    assert details.license_of(ModelFacts(path=tmp_path), {}) == "Do as you like."


def test_files_that_are_no_safetensors_have_no_count(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"none")
    assert details.parameter_count(ModelFacts(path=tmp_path, format="safetensors")) is None


def test_a_digest_lasts_as_long_as_the_files() -> None:
    profile = ModelProfile(name="a", model="/models/a", engine="engine", size_bytes=5, modified=1.5)
    digest = details.digest_of(model_of(profile))
    assert digest == details.digest_of(model_of(replace(profile, name="b", aliases=("c",))))
    assert digest != details.digest_of(model_of(replace(profile, modified=2.5)))
    assert len(digest) == 64
