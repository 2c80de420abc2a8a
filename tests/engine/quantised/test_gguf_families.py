"""A tiny model of each family as a GGUF file computes what transformers does with its dequantised weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.checkpoint.gguf_config import ARCHITECTURES
from engine.config import EngineConfig
from engine.execution.build import build_core
from engine.models.quantised.gguf_directory import as_directory
from tests.engine.quantised.gguf_families import FAMILIES, write_family
from tests.engine.quantised.test_with_transformers import TOKENS, logits_of, plain_logits
from tests.engine.test_generation import greedy, run

_TYPICAL = ("gpt-oss", "llama", "qwen3moe")


@pytest.mark.parametrize(
    "name",
    [name if name in _TYPICAL else pytest.param(name, marks=pytest.mark.exhaustive) for name in FAMILIES],
)
def test_logits_and_tokens_are_those_of_transformers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file, plain = write_family(name, tmp_path)
    expected = plain_logits(plain)
    assert (logits_of(as_directory(file)) - expected).norm() <= 1e-4 * expected.norm()
    assert generated(file) == generated(plain)


def test_every_architecture_is_tried() -> None:
    elsewhere = {"gemma2", "gemma3", "gemma-embedding", "phi3", "qwen2", "qwen3"}
    encoders = {name for name, architecture in ARCHITECTURES.items() if architecture.is_encoder}
    assert {name.partition("-slides")[0] for name in FAMILIES} | elsewhere | encoders == set(ARCHITECTURES)


def generated(model: Path) -> list[int]:
    config = EngineConfig(model=model, dtype="float32", device="cpu", num_threads=1, max_model_len=64)
    return run(build_core(config), [greedy("r", TOKENS[0].tolist(), 6)])["r"]
