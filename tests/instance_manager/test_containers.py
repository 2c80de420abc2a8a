"""Engines in containers: started, watched, adopted and ended like processes, and nothing is left behind.

Each test runs with a fake `docker`, and with docker and podman themselves where they run.
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from instance_manager.config import ManagerConfig, OnShutdown
from instance_manager.fleet.memory_snapshot import take_snapshot
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.fleet.startable import problem_of, remark_on
from instance_manager.lifecycle.ports import can_bind
from instance_manager.manager import InstanceManager
from instance_manager.memory.devices import HOST
from instance_manager.memory.gpu import GpuDriver
from instance_manager.types import FailureClass, InstanceSpec, InstanceState
from tests.fake_engine import FAKE_ENGINE
from tests.instance_manager.conftest import ManagerFactory, running, until_state
from tests.instance_manager.container_runtimes import IMAGE, Runtime, fake_docker, why_not

pytestmark = pytest.mark.timeout(120)

# This process survives the manager that detached, and so sees that nobody awaits its engine any more.
DETACHES = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@pytest.fixture(params=["fake", "docker", "podman"])
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runtime]:
    if request.param == "fake":
        with fake_docker(tmp_path) as found:
            yield found
    elif (reason := why_not(request.param)) is not None:
        pytest.skip(reason)
    else:
        yield Runtime(request.param)


@pytest.fixture
def managing_containers(
    managing: ManagerFactory, config: ManagerConfig, runtime: Runtime, tmp_path: Path
) -> Iterator[ManagerFactory]:
    """Managers one after another, on one state."""

    def make(**changes: Any) -> AbstractAsyncContextManager[InstanceManager]:
        env = {**config.engine_env, **runtime.env, **changes.pop("engine_env", {})}
        state = {"state_dir": tmp_path / "state", "state_url": f"sqlite:///{tmp_path}/state/berth.db"}
        return managing(engine_env=env, **state, **changes)

    yield make
    with warnings.catch_warnings():  # of processes that a detached manager has left running
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def name() -> str:
    """Of an instance; other tests' containers are on the same machine."""
    return f"t{secrets.token_hex(4)}"


def left_of(runtime: Runtime, *instances: str) -> list[str]:
    return [one for each in instances for one in runtime.ids(f"berth.instance={each}")]


async def test_an_engine_runs_in_a_container_and_leaves_nothing(
    managing_containers: ManagerFactory, runtime: Runtime
) -> None:
    own = name()
    async with managing_containers() as manager:
        instance = await running(
            manager, runtime.fake("--check-key", "--ballast-mb", "64", name=own, env={"HOME": "/there"})
        )
        secret = instance.secrets
        assert secret is not None and not {secret.token, secret.api_key} & set(
            " ".join(instance.command).split()
        )
        assert not any(secret.api_key in part or secret.token in part for part in instance.command)
        while instance.container is None:
            await instance.wait_for_change()
        (found,) = runtime.containers(f"berth.instance={own}")
        shown = instance.record()["container"]
        expected = {"runtime": runtime.name, "image": IMAGE, "name": f"berth-{own}-1", "id": found["Id"]}
        assert {**shown, "pid": None} == {**expected, "pid": None}
        assert shown["pid"] == found["State"]["Pid"] and shown["pid"] != instance.pid
        url = f"http://{instance.host}:{instance.port}/v1/models"
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(url)).status_code == 401
            answer = await client.get(url, headers={"Authorization": f"Bearer {secret.api_key}"})
            assert answer.status_code == 200
        snapshot = await asyncio.to_thread(
            take_snapshot, [instance], GpuDriver({}), host_fraction=1, gpu_fraction=1, host_bytes=None
        )
        assert 60 << 20 < snapshot.held[own][HOST] < 1 << 30
        port = instance.port
        assert port is not None and not can_bind(instance.host, port)
        await manager.stop(own)
        assert (instance.state, instance.failure) == (InstanceState.STOPPED, None)
        assert f"listening on {port}" in manager.read_log(own, 10)
        assert instance.record()["container"]["id"] is None
        assert left_of(runtime, own) == [] and can_bind(instance.host, port)


async def test_an_engine_that_ignores_its_signal_or_still_starts_is_ended(
    managing_containers: ManagerFactory, runtime: Runtime
) -> None:
    stubborn, starting = name(), name()
    async with managing_containers(stop_grace_s=1.0) as manager:
        instance = await running(manager, runtime.fake("--ignore-term", "--grandchild", name=stubborn))
        early = manager.create(runtime.fake("--slow-start", "60", name=starting))
        while early.container is None:
            await early.wait_for_change()
        await asyncio.gather(manager.stop(stubborn), manager.stop(starting))
        assert [instance.state, early.state] == [InstanceState.STOPPED] * 2
        assert left_of(runtime, stubborn, starting) == []


async def test_a_start_that_is_stopped_at_once_leaves_no_container(
    managing_containers: ManagerFactory, runtime: Runtime
) -> None:
    own = name()
    async with managing_containers() as manager:
        instance = manager.create(runtime.fake(name=own))
        await until_state(instance, InstanceState.HEALTH_CHECKING)
        await manager.stop(own, force=True)
        assert instance.state is InstanceState.STOPPED and left_of(runtime, own) == []


async def test_the_exit_of_an_engine_is_its_own_and_ends_its_container(
    managing_containers: ManagerFactory, runtime: Runtime
) -> None:
    dying, killed = name(), name()
    async with managing_containers() as manager:
        spec = runtime.fake("--fail-with", "bad luck", "--exit-code", "7", name=dying)
        instance = await manager.wait_ready(manager.create(spec).instance_id, 60)
        failure = instance.failure
        assert failure is not None
        assert (failure.failure_class, failure.exit_code) == (FailureClass.CRASHED, 7)
        assert failure.log_tail[-1] == "bad luck"

        instance = await running(manager, runtime.fake(name=killed))
        while instance.container is None:
            await instance.wait_for_change()
        assert instance.container.pid is not None
        first = psutil.Process(instance.container.pid)
        (first.children() or [first])[0].kill()
        await until_state(instance, InstanceState.FAILED)
        assert instance.failure is not None and instance.failure.signal == "SIGKILL"
        assert left_of(runtime, dying, killed) == []


async def test_a_killed_client_takes_its_container_along(
    managing_containers: ManagerFactory, runtime: Runtime
) -> None:
    own = name()
    async with managing_containers() as manager:
        instance = await running(manager, runtime.fake(name=own))
        assert instance.pid is not None and left_of(runtime, own)
        os.kill(instance.pid, signal.SIGKILL)
        await until_state(instance, InstanceState.FAILED)
        assert left_of(runtime, own) == []


async def test_what_the_runtime_refuses_has_a_class_of_its_own(
    managing_containers: ManagerFactory, runtime: Runtime
) -> None:
    async with managing_containers() as manager:

        async def failure_of(**fields: Any) -> tuple[FailureClass, str]:
            instance = await manager.wait_ready(manager.create(runtime.fake(**fields)).instance_id, 60)
            assert instance.failure is not None
            return instance.failure.failure_class, instance.failure.message

        kind, message = await failure_of(image="localhost:1/missing:1")
        assert kind is FailureClass.IMAGE_MISSING and "localhost:1/missing:1" in message
        kind, message = await failure_of(run_args=["--frob"])
        assert (kind, message) == (FailureClass.BAD_ARGUMENTS, "unknown flag: --frob")
        kind, message = await failure_of(command=["/nowhere/program", "{port}"])
        assert kind is FailureClass.BAD_ARGUMENTS and "no such file" in message.lower()


async def test_a_taken_name_is_a_failure_and_its_holder_is_left_alone(
    managing_containers: ManagerFactory, runtime: Runtime
) -> None:
    own = name()
    holder = f"berth-{own}-1"
    runtime("create", "--name", holder, IMAGE, "/x")
    try:
        async with managing_containers() as manager:
            instance = await manager.wait_ready(manager.create(runtime.fake(name=own)).instance_id, 60)
            assert instance.failure is not None, instance.record()
            assert instance.failure.failure_class is FailureClass.NAME_TAKEN
            assert holder in instance.failure.message
        assert runtime("inspect", "--type", "container", holder)
    finally:
        runtime("rm", "--force", holder)


@DETACHES
async def test_a_successor_adopts_the_container(
    managing_containers: ManagerFactory, runtime: Runtime
) -> None:
    own = name()
    async with managing_containers(on_shutdown=OnShutdown.DETACH) as manager:
        instance = await running(manager, runtime.fake(name=own))
        while instance.container is None:
            await instance.wait_for_change()
        before = instance.record()
    assert left_of(runtime, own)
    async with managing_containers() as manager:
        instance = await manager.wait_ready(own, 60)
        while instance.container is None:
            await instance.wait_for_change()
        after = instance.record()
        same = ("pid", "port", "container", "command", "restarts")
        assert [after[one] for one in same] == [before[one] for one in same]
    assert left_of(runtime, own) == []


@DETACHES
async def test_a_container_without_its_client_is_removed_by_the_successor(
    managing_containers: ManagerFactory, runtime: Runtime
) -> None:
    """As after a machine's out-of-memory killer took Berth, the shim and the client."""
    own = name()
    async with managing_containers(on_shutdown=OnShutdown.DETACH) as manager:
        instance = await running(manager, runtime.fake(name=own))
        client = psutil.Process(instance.pid)
        shim = client.parent()
    assert shim is not None
    shim.kill()
    psutil.wait_procs([client], timeout=10)
    assert left_of(runtime, own)
    async with managing_containers() as manager:
        instance = manager.get(own)
        while not instance.state.is_terminal:
            await instance.wait_for_change()
        assert instance.state is InstanceState.FAILED
        assert left_of(runtime, own) == []


@DETACHES
async def test_a_container_that_no_instance_has_is_removed_at_the_start(
    managing_containers: ManagerFactory, runtime: Runtime, tmp_path: Path
) -> None:
    own = name()
    async with managing_containers(on_shutdown=OnShutdown.DETACH) as manager:
        instance = await running(manager, runtime.fake(name=own))
        client = psutil.Process(instance.pid)
        shim = client.parent()
    assert shim is not None
    shim.kill()
    psutil.wait_procs([client], timeout=10)
    (tmp_path / "state" / "berth.db").unlink()
    async with managing_containers() as manager:
        assert own not in [one.instance_id for one in manager.list(include_terminal=True)]
        async with asyncio.timeout(30):
            while await asyncio.to_thread(left_of, runtime, own):  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.05)


async def test_a_runtime_that_is_missing_or_away_is_named(
    managing: ManagerFactory, config: ManagerConfig, tmp_path: Path
) -> None:
    with fake_docker(tmp_path) as runtime:
        away = {**runtime.env, "DOCKER_HOST": f"unix://{tmp_path}/nobody.sock"}
        async with managing(engine_env={**config.engine_env, **away}) as manager:
            instance = await manager.wait_ready(manager.create(runtime.fake()).instance_id, 60)
            assert instance.failure is not None
            assert instance.failure.failure_class is FailureClass.RUNTIME_UNAVAILABLE
            assert "Is the docker daemon running?" in instance.failure.message
        async with managing(engine_env={**config.engine_env, "PATH": str(tmp_path)}) as manager:
            instance = await manager.wait_ready(manager.create(runtime.fake()).instance_id, 60)
            assert instance.failure is not None
            assert instance.failure.failure_class is FailureClass.RUNTIME_UNAVAILABLE
            assert "runtime: docker" in instance.failure.message


async def test_the_end_of_the_daemon_ends_the_engine(
    managing: ManagerFactory, config: ManagerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes would run on, and hold the port."""
    monkeypatch.setattr("instance_manager.process.containers.process._REMOVAL_S", 0.2)
    with fake_docker(tmp_path) as runtime:
        async with managing(engine_env={**config.engine_env, **runtime.env}) as manager:
            instance = await running(manager, runtime.fake("--ignore-term"))
            while instance.container is None:
                await instance.wait_for_change()
            assert instance.container.pid is not None and runtime.daemon is not None
            first = psutil.Process(instance.container.pid)
            runtime.daemon.kill()
            await until_state(instance, InstanceState.FAILED)
            assert instance.failure is not None
            assert instance.failure.failure_class is FailureClass.RUNTIME_UNAVAILABLE
            assert not first.is_running() or first.status() == psutil.STATUS_ZOMBIE


async def test_an_engine_s_own_kind_runs_in_its_image(
    managing: ManagerFactory, config: ManagerConfig, tmp_path: Path
) -> None:
    """vLLM's: it must name its model, accept its key, and gets the flags alone, after the entrypoint."""
    program = tmp_path / "vllm"
    program.write_text(f'#!/bin/sh\nFAKE_VLLM=1 exec "{sys.executable}" -S "{FAKE_ENGINE}" "$@"\n')
    program.chmod(0o755)
    with fake_docker(tmp_path) as runtime:
        spec = InstanceSpec(
            "fake/model",
            "vllm",
            params={"max_model_len": 8},
            runtime="docker",
            run_args=("--entrypoint", str(program)),
            env={"HF_HUB_CACHE": str(tmp_path / "hub")},
        )
        async with managing(engine_env={**config.engine_env, **runtime.env}, options={}) as manager:
            instance = await running(manager, spec)
            assert "vllm/vllm-openai:latest --max-model-len 8" in " ".join(instance.command)
            assert (tmp_path / "hub").is_dir()


def test_what_would_fail_every_start_is_found_before(tmp_path: Path) -> None:
    profile = ModelProfile(
        "m", "m", "command", command=("serve", "{port}"), runtime="docker", image="an/image"
    )
    with fake_docker(tmp_path) as runtime:

        def said(**fields: Any) -> str | None:
            env = {**runtime.env, **fields.pop("engine_env", {})}
            one = replace(profile, **fields)
            config = ManagerConfig(engine_env=env)
            return problem_of(one, config, ()) or remark_on(one, config)

        assert said() is None
        assert (
            said(engine_env={"PATH": "/nowhere"}) == "`runtime: docker`: there is no program 'docker' in PATH"
        )
        away = said(engine_env={"DOCKER_HOST": "unix:///nowhere.sock"})
        assert away is not None and "Is the docker daemon running?" in away
        assert said(volumes=("/nowhere/x:/x",)) == "volumes: there is no /nowhere/x"
        missing = said(image="missing", run_args=("--pull=never",))
        assert missing == "its image 'missing' isn't on this machine, and its run_args forbid a download"
        later = said(image="missing")
        assert later is not None and later.startswith(
            "model m: its image 'missing' isn't on this machine: the first"
        )
        portless = said(command=("serve",))
        assert portless is not None and "{port}" in portless
