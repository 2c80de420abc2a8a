"""Memory of real processes; control groups from files; GPUs are fake (tests/fake_nvml)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from host_limits.host_memory import host_total_bytes
from instance_manager.memory.device_memory import (
    budgets,
    measure_groups,
    private_bytes,
    wait_until_freed,
)
from instance_manager.memory.devices import HOST
from instance_manager.memory.gpu import Gpu, GpuDriver
from tests.fake_nvml import GIB, describe_gpus, pynvml, uuid, write_gpus

MIB = 1 << 20

# Holds 64 MiB of its own, maps a file of 64 MiB, and has a child in its group that does the same.
HOLDER = """
import mmap, os, sys
child = os.fork()
block = bytearray(os.urandom(1)) * (64 << 20)
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
total = sum(mapped[i] for i in range(0, len(mapped), 4096))
if child:
    os.read(int(sys.argv[2]), 1)
    print("ready", flush=True)
    os.waitpid(child, 0)
else:
    os.write(int(sys.argv[3]), b"x")
    sys.stdin.read()
"""


@contextmanager
def holding(file: Path) -> Iterator[int]:
    """The process group of two holders, both ready."""
    read_end, write_end = os.pipe()
    argv = [sys.executable, "-c", HOLDER, str(file), str(read_end), str(write_end)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        argv, stdin=pipe, stdout=pipe, start_new_session=True, pass_fds=(read_end, write_end)
    ) as process:
        os.close(read_end)
        os.close(write_end)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def no_gpus() -> GpuDriver:
    return GpuDriver({"CUDA_VISIBLE_DEVICES": ""})


@pytest.fixture
def gpu_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "gpus.json"
    write_gpus(path, describe_gpus(2))
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)
    monkeypatch.setenv("FAKE_NVML", str(path))
    return path


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere shared and private pages can't be distinguished"
)
def test_a_group_holds_private_memory_and_not_the_file_that_both_map(
    tmp_path: Path, no_gpus: GpuDriver
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"w" * (64 * MIB))
    with holding(file) as pgid:
        held = measure_groups([pgid, 1 << 22], no_gpus)
    assert held[1 << 22] == {}
    # Two blocks and two small interpreters; the file would add 64 MiB at least, as resident bytes 128.
    assert 128 * MIB <= held[pgid][HOST] < 175 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="smaps is Linux's")
def test_without_smaps_resident_less_shared_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise PermissionError

    exact = private_bytes(psutil.Process())
    monkeypatch.setattr(Path, "read_text", refuse)
    rough = private_bytes(psutil.Process())
    memory = psutil.Process().memory_info()
    assert abs(rough - (memory.rss - memory.shared)) < 16 * MIB
    assert exact > 0


def test_gpu_memory_is_attributed_to_the_processs_group(gpu_state: Path) -> None:
    gpus = describe_gpus(2)
    gpus[0]["processes"] = {str(os.getpid()): 3 * GIB, "4194303": 7 * GIB}  # the latter is no process here
    gpus[1]["processes"] = {str(os.getpid()): 4 * GIB}
    write_gpus(gpu_state, gpus)
    driver = GpuDriver({})
    held = measure_groups([os.getpgid(0)], driver)[os.getpgid(0)]
    driver.close()
    assert held[HOST] > 0
    assert {device: size for device, size in held.items() if device != HOST} == {
        uuid(0): 3 * GIB,
        uuid(1): 4 * GIB,
    }


def test_no_groups_cost_no_measurement() -> None:
    assert measure_groups([], GpuDriver({})) == {}


def test_budgets_are_a_fraction_and_less_where_others_hold_memory() -> None:
    gpus = [Gpu("GPU-a", 0, "x", 80 * GIB, 80 * GIB), Gpu("GPU-b", 1, "x", 80 * GIB, 10 * GIB)]
    found = budgets(gpus, {"GPU-b": 20 * GIB}, host_fraction=0.001, gpu_fraction=0.9)
    assert found == {
        HOST: int(host_total_bytes() * 0.001),
        "GPU-a": 72 * GIB,
        "GPU-b": 30 * GIB,  # of 80, others hold 50
    }


async def test_free_memory_is_not_waited_for(no_gpus: GpuDriver) -> None:
    assert await wait_until_freed(HOST, 1, 60.0, no_gpus)


async def test_the_wait_for_memory_is_bounded(no_gpus: GpuDriver) -> None:
    began = time.monotonic()
    assert not await wait_until_freed(HOST, 1 << 60, 0.05, no_gpus)
    assert not await wait_until_freed("GPU-gone", 1, 0.05, no_gpus)
    assert time.monotonic() - began < 30


async def test_the_wait_ends_when_the_driver_has_freed_the_memory(gpu_state: Path) -> None:
    gpus = describe_gpus(2)
    gpus[1]["free"] = 10 * GIB
    write_gpus(gpu_state, gpus)
    driver = GpuDriver({})
    waiting = asyncio.create_task(wait_until_freed(uuid(1), 60 * GIB, 60.0, driver))
    done, _ = await asyncio.wait((waiting,), timeout=0.1)
    assert not done
    gpus[1]["free"] = 70 * GIB
    write_gpus(gpu_state, gpus)
    async with asyncio.timeout(30):
        assert await waiting
    driver.close()
