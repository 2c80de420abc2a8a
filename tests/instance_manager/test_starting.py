"""Starts that fail, with their messages, and starts that succeed in spite of a disturbance."""

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
async def test_a_failure_has_a_class_an_exit_code_and_the_last_log_lines(
    manager: InstanceManager, flags: tuple[str, ...], expected: FailureClass, exit_code: int
) -> None:
    began = time.monotonic()
    failure = await failing(manager, fake(*flags))
    assert time.monotonic() - began < 20  # without waiting for the start timeout
    assert (failure.failure_class, failure.exit_code, failure.signal) == (expected, exit_code, None)
    if flags[0] == "--fail-with":
        assert failure.log_tail == (flags[1],)


async def test_a_program_that_does_not_exist(manager: InstanceManager) -> None:
    failure = await failing(manager, InstanceSpec("m", "command", command=["/no/such/program"]))
    assert failure.failure_class is FailureClass.BAD_ARGUMENTS
    assert failure.message == "'/no/such/program' can't be run: No such file or directory"


async def test_an_engine_with_the_wrong_model_fails_at_once(manager: InstanceManager) -> None:
    failure = await failing(manager, fake_vllm(wrong_model=True))
    assert failure.failure_class is FailureClass.UNHEALTHY
    assert failure.message == "/v1/models names something-else, not 'fake-model'"


async def test_an_engine_that_refuses_its_key_is_not_running(manager: InstanceManager) -> None:
    failure = await failing(manager, fake_vllm(wrong_key=True))
    assert (failure.failure_class, "VLLM_API_KEY" in failure.message) == (FailureClass.UNHEALTHY, True)


@pytest.mark.parametrize("flags", [("--wedge",), ("--unhealthy",), ("--slow-start", "60")])
async def test_an_engine_without_log_output_gets_a_start_timeout(
    managing: ManagerFactory, flags: tuple[str, ...]
) -> None:
    async with managing(start_timeout_s=0.4) as manager:
        failure = await failing(manager, fake(*flags, "--ignore-term", "--grandchild"))
    assert failure.failure_class is FailureClass.START_TIMEOUT
    assert "START_TIMEOUT" in failure.message


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--slow-start", "60"), "nothing listens for {url}"),
        (("--unhealthy",), "{url} answered 503"),
    ],
)
async def test_a_start_timeout_names_the_probed_url_and_the_last_problem(
    managing: ManagerFactory, flags: tuple[str, ...], problem: str
) -> None:
    async with managing(start_timeout_s=1.0) as manager:
        failure = await failing(manager, fake(*flags, health_path="/health"))
        expected = problem.format(url=f"http://127.0.0.1:{manager.config.base_port}/health")
    assert expected in failure.message


async def test_a_start_timeout_names_the_port_on_which_the_engine_listens_instead(
    managing: ManagerFactory,
) -> None:
    async with managing(start_timeout_s=2.0) as manager:
        other_port = manager.config.base_port + manager.config.max_instances - 1
        argv = [str(other_port) if part == "{port}" else part for part in command()]
        failure = await failing(manager, InstanceSpec("fake-model", "command", command=argv))
    url = f"http://127.0.0.1:{manager.config.base_port}/health"
    assert f"nothing listens for {url}; its process listens on port {other_port} instead" in failure.message


async def test_a_start_with_progress_in_its_log_gets_more_time(managing: ManagerFactory) -> None:
    async with managing(start_timeout_s=0.8) as manager:
        instance = await running(manager, fake("--slow-start", "2", "--chatty-start"))
        assert instance.record()["load_seconds"] > 1.5


async def test_a_start_with_progress_gets_no_more_time_than_the_cap(managing: ManagerFactory) -> None:
    async with managing(start_timeout_s=0.8, start_timeout_cap_s=1.5) as manager:
        began = time.monotonic()
        failure = await failing(manager, fake("--slow-start", "60", "--chatty-start"))
        assert failure.failure_class is FailureClass.START_TIMEOUT
        assert failure.log_tail[-1] == "loading"
        assert 1.5 <= time.monotonic() - began < 15


@contextmanager
def foreign_engine(port: int) -> Iterator[None]:
    """Another program's engine on this port: healthy, with the same model."""
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


async def test_an_engine_that_loses_the_race_for_its_port_is_spawned_on_the_next(
    manager: InstanceManager,
) -> None:
    """The foreign engine starts after the bind test, before our child listens, and answers like ours."""
    instance = manager.create(fake_vllm(slow_start=1.5))
    lost = port_of(instance)
    await until_state(instance, InstanceState.HEALTH_CHECKING)
    with foreign_engine(lost):
        await manager.wait_ready(instance.instance_id, 60)
        assert instance.state is InstanceState.RUNNING
        assert port_of(instance) == lost + 1
        assert instance.record()["restarts"] == 1
        reasons = [event.data["reason"] for event in manager.events.since(0)]
        assert f"port {lost} was taken by another program" in reasons
        await manager.stop(instance.instance_id)


async def test_a_port_that_another_program_uses_is_skipped(manager: InstanceManager) -> None:
    with socket.create_server(("127.0.0.1", manager.config.base_port)):
        instance = await running(manager, fake())
        assert port_of(instance) == manager.config.base_port + 1


async def test_a_start_fails_when_no_port_is_left_to_try(managing: ManagerFactory) -> None:
    async with managing(max_instances=1) as manager:
        instance = manager.create(fake("--port-in-use"))
        await manager.wait_ready(instance.instance_id, 60)
        assert instance.failure is not None
        assert instance.failure.failure_class is FailureClass.PORT_IN_USE
        await running(manager, fake())  # the port was released


async def test_stopping_a_starting_engine_ends_its_group_quickly(managing: ManagerFactory) -> None:
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
    assert (stopped.state, stopped.generation) == (InstanceState.STOPPED, 0)
    deleted = manager.create(fake(name="b"))
    await manager.delete("b")
    assert (deleted.state, deleted.generation) == (InstanceState.STOPPED, 0)


async def test_requests_that_wait_for_a_failed_start_get_its_reason(manager: InstanceManager) -> None:
    instance = manager.create(
        fake("--slow-start", "0.3", "--die-after", "0", "--exit-code", "5", "--unhealthy")
    )
    assert manager.try_lease(instance.instance_id) is None
    waiters = [asyncio.create_task(manager.wait_for_lease(instance.instance_id)) for _ in range(3)]
    errors = await asyncio.gather(*waiters, return_exceptions=True)
    for error in errors:
        assert isinstance(error, InstanceFailedToStart)
        assert "failed: the engine exited with code 5 before it was ready" in error.message
        assert "listening on" in error.message  # the last log line
    with pytest.raises(InstanceNotRunning, match="exited with code 5"):
        manager.try_lease(instance.instance_id)
