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
from engine.errors import EngineAsleep, OutOfMemory
from engine.execution.offload import HostCopy, bytes_of, tensors_of
from engine.execution.residency import ModelResidency
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


class Transformers(nn.Module):
    """Weights as modules of transformers have them, two of them tied, and views of one tensor's memory."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4, dtype=dtype)
        self.head = nn.Linear(4, 5, dtype=dtype)
        self.head.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.randn(3, dtype=dtype), requires_grad=False)
        self.register_buffer("table", torch.arange(6), persistent=False)
        self.register_buffer("nothing", None)
        whole = torch.randn(6, 4)
        self.first, self.second, self.turned = whole[:2], whole[2:], whole.t()


@pytest.mark.parametrize("inference", [False, True])
def test_parameters_and_buffers_are_restored_as_what_they_were(inference: bool) -> None:
    with torch.inference_mode(inference):
        model = Transformers(torch.bfloat16)
    tensors = {name: tensor.detach().clone() for _, name, tensor in tensors_of([model])}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copy = HostCopy(model.modules(), torch.device("cpu"))
    assert bytes_of(tensor for _, _, tensor in tensors_of(model.modules())) == 0
    assert {name for name, _ in model.named_parameters()} == {"embed.weight", "head.bias", "frozen"}
    copy.restore()
    copy.close()

    assert model.head.weight is model.embed.weight
    assert isinstance(model.head.weight, nn.Parameter) and model.head.weight.requires_grad
    assert isinstance(model.frozen, nn.Parameter) and not model.frozen.requires_grad
    assert dict(model.named_buffers()).keys() == {"table"}
    restored = model.state_dict()
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[name], state[name]) for name in state)
    assert all(torch.equal(tensor, tensors[name]) for _, name, tensor in tensors_of([model]))
    assert model.first.untyped_storage().data_ptr() == model.turned.untyped_storage().data_ptr()
    assert model.turned.stride() == (1, 4)


@pytest.mark.parametrize("level", SLEEP_LEVELS)
def test_whoever_holds_addresses_is_told_before_they_go_and_when_there_are_new_ones(level: int) -> None:
    moves: list[tuple[bool, bool]] = []
    residency: ModelResidency[nn.Module, Cache]

    def on_move() -> None:
        moves.append((residency.memory.weights > 0, residency._cache is not None))

    residency = ModelResidency(
        nn.Linear(2, 2),
        Cache(),
        device=torch.device("cpu"),
        load=lambda: nn.Linear(2, 2),
        make_cache=Cache,
        on_move=on_move,
    )
    residency.sleep(level)
    assert moves == [(True, True)]
    residency.wake_up(ALL_PARTS)
    assert len(moves) == 2 and moves[1][1]
    residency.sleep(level)
    assert len(moves) == 3


def test_a_wake_up_that_fails_tells_as_well() -> None:
    moves: list[str] = []

    def fail() -> Cache:
        raise MemoryError("no memory")

    residency: ModelResidency[nn.Module, Cache] = ModelResidency(
        nn.Linear(2, 2),
        Cache(),
        device=torch.device("cpu"),
        load=lambda: nn.Linear(2, 2),
        make_cache=fail,
        on_move=lambda: moves.append("moved"),
    )
    residency.sleep(2)
    with pytest.raises(OutOfMemory):
        residency.wake_up(ALL_PARTS)
    assert moves == ["moved", "moved"]


class Cache:
    def tensors(self) -> list[torch.Tensor]:
        return [torch.empty(4)]


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
