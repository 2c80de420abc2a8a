"""A checkpoint that says it is tied but has its own head: the head is used, as by transformers."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.sleep import ALL_PARTS
from engine.core.types import EngineRequest, SamplingParams
from engine.execution.build import build_core
from tests.engine.tiny_models import Reference, prompt_of

SAID = "an lm_head.weight that differs"


def with_head(source: Path, directory: Path, *, differs: bool) -> Path:
    shutil.copytree(source, directory)
    tensors = load_file(directory / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    noise = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(1)) * 0.2
    tensors["lm_head.weight"] = noise if differs else embedding.clone()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def core_of(directory: Path) -> EngineCore:
    return build_core(EngineConfig(model=directory, dtype="float32", device="cpu", num_threads=1))


def greedy(core: EngineCore, prompt: list[int], num_tokens: int) -> list[int]:
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    core.add(EngineRequest(request_id="r", prompt_token_ids=prompt, params=params, arrival_time=0.0))
    tokens: list[int] = []
    while core.has_work:
        for delta in core.step():
            tokens += delta.token_ids
    return tokens


@pytest.mark.parametrize("name", ["qwen3-tied", "llama3-tied"])
def test_an_own_head_is_used_like_transformers_and_logged_once(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = with_head(checkpoint(name), tmp_path / "own", differs=True)
    prompt = prompt_of(20)
    with caplog.at_level(logging.INFO, "engine"):
        core = core_of(directory)
        assert greedy(core, prompt, 12) == Reference(directory).generate(prompt, 12)
        assert caplog.text.count(SAID) == 1
        core.sleep(2)
        core.wake_up(ALL_PARTS)
        assert greedy(core, prompt, 12) == Reference(directory).generate(prompt, 12)
    assert caplog.text.count(SAID) == 1


def test_a_copy_of_the_embedding_stays_tied(
    checkpoint: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = with_head(checkpoint("qwen3-tied"), tmp_path / "copy", differs=False)
    prompt = prompt_of(20)
    with caplog.at_level(logging.INFO, "engine"):
        core = core_of(directory)
    assert SAID not in caplog.text
    assert greedy(core, prompt, 12) == Reference(checkpoint("qwen3-tied")).generate(prompt, 12)
