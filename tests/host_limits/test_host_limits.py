"""Memory and CPUs within control groups, on recorded trees of /sys/fs/cgroup and files of /proc."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from host_limits.control_groups import MemoryLimit, cpu_limit, group_memory, group_pids, memory_limits
from host_limits.host_memory import host_available_bytes, host_total_bytes

KIB = 1 << 10
NO_LIMIT_V1 = "9223372036854771712"
MEMINFO = "MemTotal:       2000 kB\nMemFree:         100 kB\nMemAvailable:   1500 kB\nHugePages_Total:  0\n"

SYSTEMD_V2 = {  # a service with limits of its own in a slice with limits
    "proc/self/cgroup": "0::/system.slice/berth.service",
    "sys/fs/cgroup/cgroup.controllers": "cpu memory",
    "sys/fs/cgroup/system.slice/memory.max": str(1000 * KIB),
    "sys/fs/cgroup/system.slice/memory.current": str(600 * KIB),
    "sys/fs/cgroup/system.slice/memory.stat": f"anon 5\nfile 7\ninactive_file {100 * KIB}\nactive_file 3",
    "sys/fs/cgroup/system.slice/cpu.max": "150000 100000",
    "sys/fs/cgroup/system.slice/berth.service/memory.max": str(400 * KIB),
    "sys/fs/cgroup/system.slice/berth.service/memory.current": str(300 * KIB),
    "sys/fs/cgroup/system.slice/berth.service/memory.stat": f"inactive_file {500 * KIB}",
    "sys/fs/cgroup/system.slice/berth.service/cpu.max": "max 100000",
}
CONTAINER_V2 = {  # a namespace of its own: its group is the root
    "proc/self/cgroup": "0::/",
    "sys/fs/cgroup/memory.max": str(800 * KIB),
    "sys/fs/cgroup/memory.current": str(500 * KIB),
    "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {200 * KIB}",
    "sys/fs/cgroup/cpu.max": "250000 100000",
}
CONTAINER_V1 = {  # no namespace: the path is the host's, and the mounts' roots are its groups
    "proc/self/cgroup": "7:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc\n1:name=systemd:/x\n0::/x",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": str(800 * KIB),
    "sys/fs/cgroup/memory/memory.usage_in_bytes": str(200 * KIB),
    "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {50 * KIB}",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
}
NESTED_V1 = {  # the outer group is the tighter one
    "proc/self/cgroup": "4:memory:/outer/inner\n2:cpuacct:/\n1:cpu:/outer/inner\n0::/",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": NO_LIMIT_V1,
    "sys/fs/cgroup/memory/memory.usage_in_bytes": str(1900 * KIB),
    "sys/fs/cgroup/memory/outer/memory.limit_in_bytes": str(500 * KIB),
    "sys/fs/cgroup/memory/outer/memory.usage_in_bytes": str(450 * KIB),
    "sys/fs/cgroup/memory/outer/inner/memory.limit_in_bytes": str(600 * KIB),
    "sys/fs/cgroup/memory/outer/inner/memory.usage_in_bytes": str(10 * KIB),
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    "sys/fs/cgroup/cpu/outer/cpu.cfs_quota_us": "300000",
    "sys/fs/cgroup/cpu/outer/cpu.cfs_period_us": "100000",
}
UNLIMITED_V2 = {
    "proc/self/cgroup": "0::/user.slice",
    "sys/fs/cgroup/user.slice/memory.max": "max",
    "sys/fs/cgroup/user.slice/memory.current": str(1900 * KIB),
    "sys/fs/cgroup/user.slice/cpu.max": "max 100000",
}


def recorded(root: Path, files: Mapping[str, str], meminfo: str | None = MEMINFO) -> Path:
    for name, text in {**files, **({} if meminfo is None else {"proc/meminfo": meminfo})}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("files", "total", "available", "cpus"),
    [
        pytest.param(SYSTEMD_V2, 400, 400, 1.5, id="a service in a slice, version 2"),
        pytest.param(CONTAINER_V2, 800, 500, 2.5, id="a container, version 2"),
        pytest.param(CONTAINER_V1, 800, 650, 0.5, id="a container, version 1"),
        pytest.param(NESTED_V1, 500, 50, 3.0, id="nested groups, version 1"),
        pytest.param(UNLIMITED_V2, 2000, 1500, None, id="a group without limits"),
        pytest.param({}, 2000, 1500, None, id="no control groups"),
    ],
)
def test_the_tightest_limit_counts(
    tmp_path: Path, files: Mapping[str, str], total: int, available: int, cpus: float | None
) -> None:
    root = recorded(tmp_path, files)
    assert host_total_bytes(root) == total * KIB
    assert host_available_bytes(root) == available * KIB
    assert cpu_limit(root) == cpus


def test_every_group_with_a_limit_is_reported_the_innermost_first(tmp_path: Path) -> None:
    found = list(memory_limits(recorded(tmp_path, SYSTEMD_V2)))
    assert found == [MemoryLimit(400 * KIB, 0), MemoryLimit(1000 * KIB, 500 * KIB)]


def test_the_machine_counts_where_its_groups_allow_more(tmp_path: Path) -> None:
    root = recorded(tmp_path, CONTAINER_V2, MEMINFO.replace("1500", "90").replace("2000", "700"))
    assert (host_total_bytes(root), host_available_bytes(root)) == (700 * KIB, 90 * KIB)


def test_a_limit_counts_also_where_the_use_can_t_be_read(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": str(300 * KIB)}
    assert host_total_bytes(recorded(tmp_path, files)) == 300 * KIB


def test_a_group_that_uses_more_than_its_limit_has_nothing_left(tmp_path: Path) -> None:
    files = {**CONTAINER_V2, "sys/fs/cgroup/memory.max": str(100 * KIB)}
    assert host_available_bytes(recorded(tmp_path, files)) == 0


def test_without_proc_the_system_is_asked(tmp_path: Path) -> None:
    total = host_total_bytes(recorded(tmp_path, {}, meminfo=None))
    assert total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < host_available_bytes(tmp_path) <= total


def test_this_machine_has_memory() -> None:
    assert 1 << 26 < host_available_bytes() <= host_total_bytes() <= psutil.virtual_memory().total


ENGINE_V2 = {  # a container beside us, with a group of its own below it
    "proc/self/cgroup": "0::/berth",
    "proc/77/cgroup": "0::/system.slice/docker-abc.scope",
    "sys/fs/cgroup/memory.current": str(9000 * KIB),
    "sys/fs/cgroup/system.slice/docker-abc.scope/memory.current": str(600 * KIB),
    "sys/fs/cgroup/system.slice/docker-abc.scope/memory.stat": f"anon 5\ninactive_file {100 * KIB}",
    "sys/fs/cgroup/system.slice/docker-abc.scope/cgroup.procs": "77\n78\n",
    "sys/fs/cgroup/system.slice/docker-abc.scope/inner/cgroup.procs": "79\n",
}
ENGINE_V1 = {
    "proc/77/cgroup": "4:memory:/docker/abc\n1:name=systemd:/docker/abc\n0::/docker/abc",
    "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": str(600 * KIB),
    "sys/fs/cgroup/memory/docker/abc/memory.stat": f"inactive_file 1\ntotal_inactive_file {100 * KIB}",
    "sys/fs/cgroup/memory/docker/abc/cgroup.procs": "77\n78\n",
    "sys/fs/cgroup/memory/docker/abc/inner/cgroup.procs": "79\n",
}


@pytest.mark.parametrize("files", [ENGINE_V2, ENGINE_V1], ids=["v2", "v1"])
def test_a_container_s_memory_and_processes_are_its_own_group_s(
    tmp_path: Path, files: Mapping[str, str]
) -> None:
    root = recorded(tmp_path, files)
    assert group_memory(77, root) == 500 * KIB
    assert sorted(group_pids(77, root)) == [77, 78, 79]
    assert (group_memory(78, root), group_pids(78, root)) == (None, [])  # it is gone
