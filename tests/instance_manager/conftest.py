"""A manager on its own ports, and a check that no test leaves a process behind."""

from __future__ import annotations

import random
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from instance_manager.config import ManagerConfig
from instance_manager.lifecycle.instance import Instance
from instance_manager.manager import InstanceManager
from instance_manager.types import InstanceSpec, InstanceState
from tests.fake_engine import command, write_fake_python

MARK = "BERTH_TEST_MARK"
LOOPS = [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})]

ManagerFactory = Callable[..., AbstractAsyncContextManager[InstanceManager]]


@pytest.fixture(scope="session")
def fake_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter for VLLM_PYTHON whose "vLLM" is the fake engine."""
    return write_fake_python(tmp_path_factory.mktemp("bin") / "python")


@pytest.fixture
def mark() -> Iterator[str]:
    """A value in the environment of each engine of a test; afterwards no process with it may be left."""
    value = secrets.token_hex(8)
    yield value
    left = marked(value)
    for process in left:
        process.kill()
    assert not left, f"left behind: {left}"


def marked(mark: str) -> list[psutil.Process]:
    """All live processes with the mark in their environment, anywhere in the process tree."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def config(tmp_path: Path, mark: str, fake_python: str) -> ManagerConfig:
    return ManagerConfig(
        base_port=free_ports(6),
        max_instances=6,
        start_timeout_s=60.0,
        stop_grace_s=5.0,
        drain_timeout_s=20.0,
        log_dir=tmp_path / "logs",
        options={"vllm_python": fake_python},
        engine_env={MARK: mark},
    )


@pytest.fixture
def managing(config: ManagerConfig) -> ManagerFactory:
    """`async with managing(stop_grace_s=1) as manager`: a manager with a changed test configuration."""

    @asynccontextmanager
    async def make(**changes: Any) -> AsyncIterator[InstanceManager]:
        manager = InstanceManager(replace(config, **changes))
        async with manager.run():
            yield manager

    return make


@pytest.fixture
async def manager(managing: ManagerFactory) -> AsyncIterator[InstanceManager]:
    async with managing() as manager:
        yield manager


def free_ports(count: int) -> int:
    """The first of `count` successive unused ports, below the system's ephemeral range."""
    for _ in range(200):
        base = random.randrange(12000, 32000 - count)
        if all(_is_free(port) for port in range(base, base + count)):
            return base
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def fake(*flags: str, **fields: Any) -> InstanceSpec:
    """A spec for a fake engine with these flags."""
    return InstanceSpec("fake-model", "command", command=command(*flags), **fields)


def fake_vllm(**params: Any) -> InstanceSpec:
    """A spec for a fake engine of the vLLM back end: it must name its model and accept its key."""
    return InstanceSpec("fake-model", "vllm", params=params)


async def running(manager: InstanceManager, spec: InstanceSpec) -> Instance:
    instance = await manager.wait_ready(manager.create(spec).instance_id, 60)
    assert instance.state is InstanceState.RUNNING, instance.record()
    return instance


async def until_state(instance: Instance, state: InstanceState) -> float:
    """Wait for the state; returns the seconds it took."""
    began = time.monotonic()
    while instance.state is not state:
        await instance.wait_for_change()
    return time.monotonic() - began
