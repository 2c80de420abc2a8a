"""Starts that fail, and what is said about them; starts that are disturbed and succeed."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from instance_manager.errors import InstanceFailedToStart, InstanceNotRunning
from instance_manager.lifecycle.instance import Instance
from instance_manager.manager import InstanceManager
from instance_manager.types import FailureClass, InstanceFailure, InstanceSpec, InstanceState
from tests.fake_engine import FAKE_ENGINE, command
from tests.instance_manager.conftest import ManagerFactory, fake, fake_vllm, running, until_state


async def failing(manager: InstanceManager, spec: InstanceSpec) -> InstanceFailure:
    instance = await manager.wait_ready(manager.create(spec).instance_id, 60)
    assert instance.state is InstanceState.FAILED, instance.record()
    assert instance.failure is not None
    assert instance.port is None
    return instance.failure


@pytest.mark.parametrize(
    ("flags", "expected", "exit_code"),
    [
        (("--fail-with", "torch.OutOfMemoryError: CUDA out of memory"), FailureClass.OUT_OF_MEMORY, 1),
        (("--fail-with", "x is not a valid model identifier"), FailureClass.MODEL_NOT_FOUND, 1),
        (("--fail-with", "Segmentation fault", "--exit-code", "7"), FailureClass.CRASHED, 7),
        (("--fail-with", "", "--exit-code", "0"), FailureClass.CRASHED, 0),
        (("--no-such-flag",), FailureClass.BAD_ARGUMENTS, 2),
        (("--port-in-use",), FailureClass.PORT_IN_USE, 1),
    ],
)
async def test_a_failure_has_a_class_an_exit_code_and_the_last_lines(
    manager: InstanceManager, flags: tuple[str, ...], expected: FailureClass, exit_code: int
) -> None:
    began = time.monotonic()
    failure = await failing(manager, fake(*flags))
    assert time.monotonic() - began < 20  # nobody waits for the start time-out
    assert (failure.failure_class, failure.exit_code, failure.signal) == (expected, exit_code, None)
    if flags[0] == "--fail-with":
        assert failure.log_tail == (flags[1],)


async def test_a_program_that_does_not_exist(manager: InstanceManager) -> None:
    failure = await failing(manager, InstanceSpec("m", "command", command=["/no/such/program"]))
    assert failure.failure_class is FailureClass.BAD_ARGUMENTS
    assert failure.message == "'/no/such/program' can't be run: No such file or directory"


async def test_the_wrong_model_is_noticed_at_once(manager: InstanceManager) -> None:
    failure = await failing(manager, fake_vllm(wrong_model=True))
    assert failure.failure_class is FailureClass.UNHEALTHY
    assert failure.message == "/v1/models names something-else, not 'fake-model'"


async def test_an_engine_that_refuses_its_key_is_not_running(manager: InstanceManager) -> None:
    failure = await failing(manager, fake_vllm(wrong_key=True))
    assert (failure.failure_class, "VLLM_API_KEY" in failure.message) == (FailureClass.UNHEALTHY, True)


@pytest.mark.parametrize("flags", [("--wedge",), ("--unhealthy",), ("--slow-start", "60")])
async def test_silence_ends_in_a_start_timeout(managing: ManagerFactory, flags: tuple[str, ...]) -> None:
    async with managing(start_timeout_s=0.4) as manager:
        failure = await failing(manager, fake(*flags, "--ignore-term", "--grandchild"))
    assert failure.failure_class is FailureClass.START_TIMEOUT
    assert "START_TIMEOUT" in failure.message


@pytest.mark.parametrize(
    ("flags", "met"),
    [
        (("--slow-start", "60"), "nothing listens for {url}"),
        (("--unhealthy",), "{url} answered 503"),
    ],
)
async def test_a_start_timeout_says_which_address_was_asked_and_what_it_met(
    managing: ManagerFactory, flags: tuple[str, ...], met: str
) -> None:
    async with managing(start_timeout_s=1.0) as manager:
        failure = await failing(manager, fake(*flags, health_path="/health"))
        expected = met.format(url=f"http://127.0.0.1:{manager.config.base_port}/health")
    assert expected in failure.message


async def test_an_engine_that_listens_elsewhere_is_told_where(managing: ManagerFactory) -> None:
    async with managing(start_timeout_s=2.0) as manager:
        elsewhere = manager.config.base_port + manager.config.max_instances - 1
        argv = [str(elsewhere) if part == "{port}" else part for part in command()]
        failure = await failing(manager, InstanceSpec("fake-model", "command", command=argv))
    asked = f"http://127.0.0.1:{manager.config.base_port}/health"
    assert f"nothing listens for {asked}; its process listens on port {elsewhere} instead" in failure.message


async def test_a_start_that_shows_progress_gets_more_time(managing: ManagerFactory) -> None:
    async with managing(start_timeout_s=0.8) as manager:
        instance = await running(manager, fake("--slow-start", "2", "--chatty-start"))
        assert instance.record()["load_seconds"] > 1.5


async def test_but_never_more_than_the_cap(managing: ManagerFactory) -> None:
    async with managing(start_timeout_s=0.8, start_timeout_cap_s=1.5) as manager:
        began = time.monotonic()
        failure = await failing(manager, fake("--slow-start", "60", "--chatty-start"))
        assert failure.failure_class is FailureClass.START_TIMEOUT
        assert failure.log_tail[-1] == "loading"
        assert 1.5 <= time.monotonic() - began < 15


@contextmanager
def stranger(port: int) -> Iterator[None]:
    """Another program's engine on this port: healthy, and of the same model."""
    argv = [sys.executable, "-S", FAKE_ENGINE, "--port", str(port), "--model", "fake-model"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"listening")
            yield
        finally:
            process.kill()


def port_of(instance: Instance) -> int:
    assert instance.port is not None
    return instance.port


async def test_a_lost_race_for_the_port_is_run_again_on_the_next(manager: InstanceManager) -> None:
    """The stranger comes after the bind test, before our child listens, and answers as if it were ours."""
    instance = manager.create(fake_vllm(slow_start=1.5))
    lost = port_of(instance)
    await until_state(instance, InstanceState.HEALTH_CHECKING)
    with stranger(lost):
        await manager.wait_ready(instance.instance_id, 60)
        assert instance.state is InstanceState.RUNNING
        assert port_of(instance) == lost + 1
        assert instance.record()["restarts"] == 1
        reasons = [event.data["reason"] for event in manager.events.since(0)]
        assert f"port {lost} was taken by another program" in reasons
        await manager.stop(instance.instance_id)


async def test_a_port_taken_between_two_lives_is_left_alone(manager: InstanceManager) -> None:
    with socket.create_server(("127.0.0.1", manager.config.base_port)):
        instance = await running(manager, fake())
        assert port_of(instance) == manager.config.base_port + 1


async def test_no_port_left_to_try_is_a_failure(managing: ManagerFactory) -> None:
    async with managing(max_instances=1) as manager:
        instance = manager.create(fake("--port-in-use"))
        await manager.wait_ready(instance.instance_id, 60)
        assert instance.failure is not None
        assert instance.failure.failure_class is FailureClass.PORT_IN_USE
        await running(manager, fake())  # the port was given back


async def test_stopping_a_start_ends_the_whole_group_soon(managing: ManagerFactory) -> None:
    async with managing(stop_grace_s=30.0) as manager:
        instance = manager.create(fake("--slow-start", "60", "--ignore-term", "--grandchild"))
        await until_state(instance, InstanceState.HEALTH_CHECKING)
        began = time.monotonic()
        await manager.stop(instance.instance_id)
        assert instance.state is InstanceState.STOPPED
        assert time.monotonic() - began < 10


async def test_stop_and_delete_before_the_spawn(manager: InstanceManager) -> None:
    stopped = manager.create(fake(name="a"))
    await manager.stop("a")
    assert (stopped.state, stopped.spawns) == (InstanceState.STOPPED, 0)
    deleted = manager.create(fake(name="b"))
    await manager.delete("b")
    assert (deleted.state, deleted.spawns) == (InstanceState.STOPPED, 0)


async def test_whoever_waits_for_a_start_that_fails_is_told(manager: InstanceManager) -> None:
    instance = manager.create(
        fake("--slow-start", "0.3", "--die-after", "0", "--exit-code", "5", "--unhealthy")
    )
    assert manager.try_lease(instance.instance_id) is None
    waiters = [asyncio.create_task(manager.wait_for_lease(instance.instance_id)) for _ in range(3)]
    errors = await asyncio.gather(*waiters, return_exceptions=True)
    for error in errors:
        assert isinstance(error, InstanceFailedToStart)
        assert "crashed: the engine exited with code 5 before it was ready" in error.message
        assert "listening on" in error.message  # the last log line
    with pytest.raises(InstanceNotRunning, match="exited with code 5"):
        manager.try_lease(instance.instance_id)
