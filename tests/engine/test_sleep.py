"""Which parts sleep after which calls, and tensors that move out of a device and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from engine.core.sleep import ALL_PARTS, SLEEP_LEVELS, MemoryUsage, Part, SleepState
from engine.errors import EngineAsleep
from engine.execution.offload import HostCopy, bytes_of, tensors_of
from tests.engine.test_models import runner_of

_CALLS = st.lists(st.sampled_from(SLEEP_LEVELS) | st.frozensets(st.sampled_from(Part)), max_size=12)


@given(_CALLS)
def test_any_calls_in_any_order(calls: list[int | frozenset[Part]]) -> None:
    """Against a model that tracks each part."""
    state, there, has_dropped = SleepState(), set(Part), False
    for call in calls:
        if isinstance(call, int):
            has_dropped = has_dropped or call == 2
            there = set()
            state = state.after_sleep(call)
        else:
            has_dropped = has_dropped and Part.WEIGHTS not in call
            there |= call
            state = state.after_wake_up(call)
        assert state.asleep == ALL_PARTS - there
        assert state.level == (0 if not state.asleep else 2 if has_dropped else 1)


class Layer(nn.Module):
    """Attributes as our layers have them."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self._weight = weight
        self._bias = bias


def test_weights_move_out_of_a_device_and_back() -> None:
    """The device is the CPU here: copying and sharing are real, page-locking isn't run."""
    tied = torch.randn(5, 7)
    first, second = Layer(tied, torch.randn(3, dtype=torch.float64)), Layer(tied)
    third = Layer(torch.randn(4, 6).to(torch.bfloat16).t())
    modules = [first, second, third]
    before = {(id(module), name): tensor.clone() for module, name, tensor in tensors_of(modules)}
    assert len(before) == 4
    num_bytes = bytes_of(tensor for _, _, tensor in tensors_of(modules))
    assert num_bytes == 5 * 7 * 4 + 3 * 8 + 4 * 6 * 2
    copy = HostCopy(modules, torch.device("cpu"))
    assert num_bytes <= copy.num_bytes < num_bytes + 3 * 256
    assert bytes_of(tensor for _, _, tensor in tensors_of(modules)) == 0
    copy.restore()
    copy.close()
    assert copy.num_bytes == 0
    after = {(id(module), name): tensor for module, name, tensor in tensors_of(modules)}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert first._weight is second._weight, "shared tensors are shared again"


def test_a_runner_that_can_not_load_its_weights_keeps_them(checkpoint: Callable[[str], Path]) -> None:
    runner = runner_of(checkpoint("qwen3-tied"))
    before = runner.memory
    assert before.weights > 0 and before.kv_cache > 0 and before.host_weights == 0
    with pytest.raises(EngineAsleep, match="can't be dropped"):
        runner.sleep(2)
    assert runner.memory == before
    runner.sleep(1)
    assert runner.memory == MemoryUsage(device="cpu", weights=before.weights, kv_cache=0)
    runner.wake_up({Part.KV_CACHE})
    assert runner.memory == before
