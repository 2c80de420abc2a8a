"""The demo model on the GPU beside the CPU: the same greedy tokens in float32, close logits in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.machine import DEVICE, REHEARSES
from benchmarks.gpu.table import print_table
from engine.config import EngineConfig
from engine.core.batch import Batch, ScheduledSequence, SequenceInput
from engine.core.engine_core import EngineCore
from engine.core.types import EngineRequest, SamplingParams
from engine.execution.build import build_core
from engine.execution.runner import ModelRunner

MODEL = Path(__file__).parents[2] / "models" / "berth-demo"
_LENGTHS = (1, 5, 17) if REHEARSES else (1, 5, 16, 17, 33, 64, 200, 500)
_NUM_TOKENS = 4 if REHEARSES else 48
_VOCABULARY = 3000
_LARGEST_ERROR = 0.05  # of logits in bfloat16, of their norm


def main() -> None:
    device = DEVICE.type
    expected = _greedy(_core("cpu", "float32"))
    mixed = _greedy(_core(device, "float32", max_num_batched_tokens=100))
    rows = [(length, _agreement(mixed[length], expected[length])) for length in _LENGTHS]
    print("Greedy tokens in float32 that equal the CPU's, prompts in chunks beside decodes:\n")
    print_table(("prompt's tokens", "equal"), rows)
    print("Relative error of the last position's logits in bfloat16, against the CPU's float32:\n")
    errors = dict(_errors(_runner("cpu", "float32"), _runner(device, "bfloat16")))
    print_table(("prompt's tokens", "error"), [(n, f"{error:.2e}") for n, error in errors.items()])
    if mixed != expected:
        raise AssertionError("The GPU's tokens differ from the CPU's.")
    if far := [length for length, error in errors.items() if not error <= _LARGEST_ERROR]:
        raise AssertionError(f"Logits of prompts of {far} tokens are further than {_LARGEST_ERROR} off.")


def prompt_of(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    tokens: list[int] = torch.randint(2, _VOCABULARY, (length,), generator=generator).tolist()
    return tokens


def _core(device: str, dtype: str, **options: Any) -> EngineCore:
    return build_core(
        EngineConfig(model=MODEL, device=device, dtype=dtype, num_gpu_blocks_override=1024, **options)
    )


def _runner(device: str, dtype: str) -> ModelRunner:
    runner = _core(device, dtype)._runner
    if not isinstance(runner, ModelRunner):
        raise TypeError(f"An unexpected runner: {runner!r}.")
    return runner


def _greedy(core: EngineCore) -> dict[int, list[int]]:
    """All requests at once."""
    params = SamplingParams(max_tokens=_NUM_TOKENS, temperature=0.0, ignore_eos=True)
    for length in _LENGTHS:
        core.add(
            EngineRequest(
                request_id=str(length), prompt_token_ids=prompt_of(length), params=params, arrival_time=0.0
            )
        )
    tokens: dict[int, list[int]] = {length: [] for length in _LENGTHS}
    while core.has_work:
        for delta in core.step():
            if delta.error is not None:
                raise AssertionError(str(delta.error))
            tokens[int(delta.request_id)].extend(delta.token_ids)
    return tokens


def _agreement(ours: list[int], expected: list[int]) -> str:
    equal = next((i for i, (a, b) in enumerate(zip(ours, expected, strict=True)) if a != b), len(expected))
    return f"{equal} of {len(expected)}"


def _errors(exact: ModelRunner, ours: ModelRunner) -> Iterator[tuple[int, float]]:
    for length in _LENGTHS:
        batch = _whole(prompt_of(length))
        expected, logits = exact.logits(batch), ours.logits(batch)
        if expected is None or logits is None:
            raise AssertionError("The step gave no logits.")
        difference = logits.float().cpu() - expected
        yield length, float(difference.norm() / expected.norm())


def _whole(prompt: list[int]) -> Batch:
    return Batch(
        (
            ScheduledSequence(
                SequenceInput(prompt, 0, range(1 + len(prompt) // 16), samples=True),
                "prompt",
                SamplingParams(max_tokens=1, temperature=0.0),
            ),
        )
    )
