"""GPUs as NVML reports them. The NVML is fake (tests/fake_nvml): this proves nothing about a real driver."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from instance_manager.memory.gpu import GpuDriver
from tests.fake_nvml import GIB, describe_gpus, pynvml, uuid, write_gpus


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that describes eight GPUs of 80 GiB."""
    path = tmp_path / "gpus.json"
    write_gpus(path, describe_gpus())
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)
    monkeypatch.setenv("FAKE_NVML", str(path))
    return path


def indices(mask: str | None) -> list[int]:
    """The GPUs that a mask leaves, in order."""
    driver = GpuDriver({} if mask is None else {"CUDA_VISIBLE_DEVICES": mask})
    gpus = driver.list_gpus()
    driver.close()
    if mask is not None:
        assert [gpu.index for gpu in gpus] == list(range(len(gpus)))
    return [[uuid(i) for i in range(8)].index(gpu.uuid) for gpu in gpus]


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize(
    ("mask", "seen"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("", []),
        ("-1", []),
        ("3,1", [3, 1]),
        (" 5 , 2", [5, 2]),
        (f"{uuid(6)},0", [6, 0]),
        ("GPU-00000004", [4]),
        ("GPU-", []),  # eight begin so
        ("1,9,2", [1]),  # as CUDA does: what follows an unknown entry isn't seen
        ("2,-1,3", [2]),
        ("2,2", [2]),
    ],
)
def test_the_outer_mask_is_respected(mask: str | None, seen: list[int]) -> None:
    assert indices(mask) == seen


def test_memory_is_read_anew_each_time(state: Path) -> None:
    driver = GpuDriver({})
    before = driver.list_gpus()[2]
    assert (before.name, before.total_bytes, before.free_bytes) == ("Fake H100", 80 * GIB, 80 * GIB)
    gpus = describe_gpus()
    gpus[2] |= {"free": 30 * GIB, "processes": {"41": 20 * GIB, "42": 30 * GIB, "43": None}}
    write_gpus(state, gpus)
    assert driver.free_bytes(uuid(2)) == 30 * GIB
    assert driver.memory_by_pid(uuid(2)) == {41: 20 * GIB, 42: 30 * GIB}
    assert driver.memory_by_pid(uuid(3)) == {}
    assert driver.memory_by_pid("GPU-gone") == {}
    assert driver.free_bytes("GPU-gone") is None
    driver.close()


def test_a_failed_gpu_is_ignored(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    gpus = describe_gpus(3)
    gpus[1]["broken"] = True
    write_gpus(state, gpus)
    assert indices(None) == [0, 2]
    assert "GPU is lost" in caplog.text


def test_a_driver_that_fails_later_means_no_gpus(state: Path) -> None:
    driver = GpuDriver({})
    assert len(driver.list_gpus()) == 8
    pynvml.nvmlShutdown()
    assert driver.list_gpus() == ()
    assert driver.memory_by_pid(uuid(0)) == {}


def test_it_can_be_closed_and_used_again(state: Path) -> None:
    driver = GpuDriver({})
    assert len(driver.list_gpus()) == 8
    driver.close()
    driver.close()
    assert len(driver.list_gpus()) == 8
    driver.close()


def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)
    monkeypatch.delenv("FAKE_NVML", raising=False)
    assert GpuDriver({}).list_gpus() == ()
    assert GpuDriver({}).memory_by_pid(uuid(0)) == {}


def test_without_pynvml_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuDriver({}).list_gpus() == ()
