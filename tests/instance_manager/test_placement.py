"""Which GPUs an instance gets: examples, and properties over random machines."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instance_manager.errors import InvalidSpec, NoSuchDevice
from instance_manager.memory.gpu import Gpu
from instance_manager.memory.placement.local import choose_devices, num_gpus_of

GIB = 1 << 30


def gpus(*free_gib: int, total_gib: int = 80, name: str = "Fake H100") -> list[Gpu]:
    return [Gpu(f"GPU-{i}abc", i, name, total_gib * GIB, free * GIB) for i, free in enumerate(free_gib)]


def test_a_single_gpu_is_the_emptiest() -> None:
    assert choose_devices(gpus(10, 70, 40), 1, 5 * GIB, None) == ("GPU-1abc",)
    assert choose_devices(gpus(80, 80), 1, 5 * GIB, None) == ("GPU-0abc",)


def test_several_gpus_are_the_emptiest_in_the_machines_order() -> None:
    assert choose_devices(gpus(10, 60, 40, 70), 2, 5 * GIB, None) == ("GPU-1abc", "GPU-3abc")


def test_if_none_is_empty_enough_the_emptiest_that_is_large_enough_is_chosen() -> None:
    assert choose_devices(gpus(10, 20), 1, 50 * GIB, None) == ("GPU-1abc",)
    small = Gpu("GPU-small", 1, "Fake T4", 16 * GIB, 16 * GIB)
    assert choose_devices([gpus(10)[0], small], 1, 50 * GIB, None) == ("GPU-0abc",)


def test_several_gpus_are_of_one_model_if_possible() -> None:
    large = gpus(30, 30)
    small = [Gpu("GPU-s", 2, "Fake T4", 40 * GIB, 40 * GIB)]
    assert choose_devices(large + small, 2, 20 * GIB, None) == ("GPU-0abc", "GPU-1abc")
    assert choose_devices(large + small, 3, 20 * GIB, None) == ("GPU-0abc", "GPU-1abc", "GPU-s")


def test_requested_gpus_are_used_in_their_order() -> None:
    assert choose_devices(gpus(1, 1, 1), 1, 50 * GIB, ("2", "GPU-0")) == ("GPU-2abc", "GPU-0abc")
    assert choose_devices(gpus(1, 1), 1, 0, ()) == ()
    assert choose_devices([], 0, 0, None) == ()


def test_a_missing_device_is_named_with_the_available_ones() -> None:
    with pytest.raises(NoSuchDevice, match=r"no device '7'; there are 2 GPUs: 0 = GPU-0abc \(Fake H100\), 1"):
        choose_devices(gpus(1, 1), 1, 0, ("7",))
    with pytest.raises(NoSuchDevice, match="no device '0'; there is no GPU that Berth can see"):
        choose_devices([], 1, 0, ("0",))
    with pytest.raises(NoSuchDevice, match="needs 4 GPUs, but there are 2 GPUs: 0 = "):
        choose_devices(gpus(1, 1), 4, 0, None)
    with pytest.raises(NoSuchDevice, match="needs 1 GPU, but there is no GPU that Berth can see"):
        choose_devices([], 1, 0, None)


@pytest.mark.parametrize(
    ("params", "count"),
    [
        ({}, 1),
        ({"tensor_parallel_size": 2}, 2),
        ({"tp": "4"}, 4),
        ({"tensor_parallel_size": 2, "device": "cuda"}, 2),
        ({"tensor_parallel_size": 2, "device": "cpu"}, 0),
        ({"device": "cpu"}, 0),
    ],
)
def test_processes_on_a_cpu_need_no_gpus(params: dict[str, Any], count: int) -> None:
    assert num_gpus_of(params) == count
    assert len(choose_devices(gpus(1, 1, 1, 1), num_gpus_of(params), 0, None)) == count


def test_an_invalid_request_is_refused() -> None:
    with pytest.raises(InvalidSpec, match=r"lists GPU 1 .* twice"):
        choose_devices(gpus(1, 1), 1, 0, ("1", "GPU-1abc"))
    with pytest.raises(
        InvalidSpec, match=r"lists 1 GPU, but the model is spread over 2.*lower tensor_parallel"
    ):
        choose_devices(gpus(1, 1), 2, 0, ("1",))


@given(free=st.lists(st.integers(0, 80), min_size=1, max_size=8), data=st.data())
def test_it_chooses_the_requested_number_and_leaves_no_better_gpu_out(
    free: list[int], data: st.DataObject
) -> None:
    count, need = data.draw(st.integers(0, len(free))), data.draw(st.integers(0, 80))
    machine = gpus(*free)
    chosen = choose_devices(machine, count, need * GIB, None)
    assert len(set(chosen)) == len(chosen) == count
    taken = [gpu.free_bytes for gpu in machine if gpu.uuid in chosen]
    left = [gpu.free_bytes for gpu in machine if gpu.uuid not in chosen]
    if taken and left:
        assert min(taken) >= max(left)
    by_name = choose_devices(machine, count, need * GIB, chosen)
    assert by_name == chosen
