"""The demo model on the GPU: the CPU's greedy tokens in float32, close to transformers in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.table import print_table
from engine.config import EngineConfig
from engine.core.batch import Batch, ScheduledSequence
from engine.core.engine_core import EngineCore
from engine.core.types import EngineRequest, SamplingParams
from engine.execution.build import build_core
from engine.execution.runner import ModelRunner

MODEL = Path(__file__).parents[2] / "models" / "berth-demo"
_LENGTHS = (1, 5, 16, 17, 33, 64, 200, 500)
_NUM_TOKENS = 48
_VOCABULARY = 3000
_TOLERANCE = 1.25  # times the error of plain transformers, which computes in another order


def main() -> None:
    expected = _greedy(_core("cpu", "float32"))
    mixed = _greedy(_core("cuda", "float32", max_num_batched_tokens=100))
    rows = [(length, _agreement(mixed[length], expected[length])) for length in _LENGTHS]
    print("Greedy tokens in float32 that equal the CPU's, prompts in chunks beside decodes:\n")
    print_table(("prompt's tokens", "equal"), rows)
    _compare_bfloat16()
    if mixed != expected:
        raise AssertionError("The GPU's tokens differ from the CPU's.")


def prompt_of(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    tokens: list[int] = torch.randint(2, _VOCABULARY, (length,), generator=generator).tolist()
    return tokens


def _core(device: str, dtype: str, **options: Any) -> EngineCore:
    return build_core(
        EngineConfig(model=MODEL, device=device, dtype=dtype, num_gpu_blocks_override=1024, **options)
    )


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


def _compare_bfloat16() -> None:
    """Both computed in bfloat16, by their distance to float32's logits of the same prompt."""
    try:
        import transformers
    except ImportError:
        print("transformers isn't installed: bfloat16 was not compared.\n")
        return
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    truth, plain = (load(MODEL, dtype=dtype).to("cuda") for dtype in (torch.float32, torch.bfloat16))
    runner = _core("cuda", "bfloat16")._runner
    if not isinstance(runner, ModelRunner):
        raise TypeError(f"An unexpected runner: {runner!r}.")
    rows, failed = [], []
    for length in _LENGTHS[2:]:
        prompt = prompt_of(length)
        with torch.inference_mode():
            exact = truth(torch.tensor([prompt], device="cuda")).logits[0, -1].float()
            theirs = plain(torch.tensor([prompt], device="cuda")).logits[0, -1].float()
            ours = runner.logits(_whole(prompt))
        if ours is None:
            raise AssertionError("The step gave no logits.")
        errors = [_distance(logits, exact) for logits in (ours[0].float(), theirs)]
        rows.append((length, *(f"{error:.2e}" for error in errors)))
        failed += [length] * (not errors[0] <= _TOLERANCE * errors[1] + 2e-3)
    print("Relative error of the last position's logits in bfloat16, against float32:\n")
    print_table(("prompt's tokens", "ours", "transformers"), rows)
    if failed:
        raise AssertionError(f"Our logits are less exact than transformers' for prompts of {failed} tokens.")


def _distance(logits: torch.Tensor, exact: torch.Tensor) -> float:
    return float((logits - exact).norm() / exact.norm())


def _whole(prompt: list[int]) -> Batch:
    return Batch(
        (
            ScheduledSequence(
                request_id="prompt",
                token_ids=prompt,
                start=0,
                block_ids=list(range(1 + len(prompt) // 16)),
                samples=True,
                output_position=0,
                params=SamplingParams(max_tokens=1, temperature=0.0),
            ),
        )
    )
