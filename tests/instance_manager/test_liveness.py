"""Running engines that crash or hang: how that is noticed, and which are restarted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from instance_manager.backends import BACKENDS
from instance_manager.config import LivenessRules, RestartPolicy, RestartRules
from instance_manager.lifecycle.health import probe_client
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.liveness import LivenessFailed, ProbeTarget, watch_liveness
from instance_manager.types import FailureClass, InstanceSpec, InstanceState
from tests.fake_engine import command
from tests.instance_manager.conftest import ManagerFactory

pytestmark = pytest.mark.timeout(120)

QUICK = RestartRules(RestartPolicy.ON_FAILURE, limit=2, initial_backoff_s=0.2)
COMMAND = BACKENDS["command"]
WATCHFUL = LivenessRules(interval_s=0.1, timeout_s=0.3)


def spec(*flags: str) -> InstanceSpec:
    return InstanceSpec("fake", engine="command", command=tuple(command(*flags)), name="one")


async def until(instance: Instance, *states: InstanceState) -> None:
    async with asyncio.timeout(60):
        while instance.state not in states:
            await instance.wait_for_change()


async def until_ended(instance: Instance) -> None:
    """Wait until it has failed and no restart follows."""
    async with asyncio.timeout(60):
        while instance.state is not InstanceState.FAILED or "restarting in" in instance.status_reason:
            await instance.wait_for_change()


async def test_running_out_of_descriptors_does_not_fail_the_engine() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # no process listens
        target = ProbeTarget(f"http://127.0.0.1:{closed.getsockname()[1]}", "", "/health", COMMAND)
        async with probe_client() as client:
            watching = asyncio.create_task(watch_liveness(client, target, WATCHFUL, time.monotonic))
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))  # those three are open
            try:
                await asyncio.wait((watching,), timeout=1.5)
                assert not watching.done()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            with pytest.raises(LivenessFailed):
                await watching


async def test_a_crashed_engine_is_restarted_and_serves_waiting_requests(managing: ManagerFactory) -> None:
    async with managing(restart=QUICK) as manager:
        instance = manager.create(spec())
        await manager.wait_ready("one", 60)
        assert instance.pid is not None
        os.kill(instance.pid, signal.SIGKILL)
        await until(instance, InstanceState.FAILED)
        assert "restarting in 0.2 s" in instance.status_reason
        async with asyncio.timeout(60), manager.lease("one") as lease:
            assert lease.endpoint.generation == 2
        assert instance.record()["restarts"] == 1


async def test_after_too_many_restarts_an_instance_stays_failed_until_it_is_started(
    managing: ManagerFactory,
) -> None:
    async with managing(restart=QUICK) as manager:
        instance = manager.create(spec("--die-after", "0.1", "--exit-code", "7"))
        await until_ended(instance)
        assert instance.generation == 3
        assert instance.failure is not None
        assert (instance.failure.failure_class, instance.failure.exit_code) == (FailureClass.CRASHED, 7)
        manager.start("one")
        await until(instance, InstanceState.RUNNING)
        await until_ended(instance)
        assert instance.generation == 6


async def test_an_engine_that_was_never_ready_is_not_restarted(managing: ManagerFactory) -> None:
    async with managing(restart=QUICK) as manager:
        instance = manager.create(spec("--fail-with", "an error"))
        await until(instance, InstanceState.FAILED)
        await manager.stop("one")
        assert instance.generation == 1


@pytest.mark.parametrize("how", ["stop", "delete", "start", "restart", "shutdown"])
async def test_a_request_interrupts_the_back_off(managing: ManagerFactory, how: str) -> None:
    rules = RestartRules(RestartPolicy.ON_FAILURE, initial_backoff_s=300)
    async with managing(restart=rules) as manager:
        instance = manager.create(spec())
        await manager.wait_ready("one", 60)
        assert instance.pid is not None
        os.kill(instance.pid, signal.SIGKILL)
        await until(instance, InstanceState.FAILED)
        waiting = asyncio.create_task(manager.wait_for_lease("one"))
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            if how == "start":
                manager.start("one")
                (await waiting).release()
            elif how == "restart":
                await manager.restart("one")
                (await waiting).release()
            elif how == "stop":
                await manager.stop("one")
                assert instance.state is InstanceState.STOPPED
            elif how == "delete":
                await manager.delete("one")
            else:
                await manager.shutdown()
        if how not in ("start", "restart"):
            with pytest.raises(Exception, match=r"no longer running|shutting down"):
                await waiting


async def test_an_engine_that_hangs_is_ended_and_restarted(managing: ManagerFactory) -> None:
    async with managing(restart=QUICK, liveness=WATCHFUL, stop_grace_s=0.2) as manager:
        instance = manager.create(spec())
        await manager.wait_ready("one", 60)
        assert instance.pid is not None
        os.kill(instance.pid, signal.SIGSTOP)
        await until(instance, InstanceState.FAILED)
        assert instance.failure is not None
        assert instance.failure.failure_class is FailureClass.UNHEALTHY
        assert re.search(
            r"3 health probes in a row failed, the last: http://\S+/health did not", instance.failure.message
        )
        await until(instance, InstanceState.RUNNING)


async def test_a_single_failed_probe_is_no_failure(managing: ManagerFactory) -> None:
    async with managing(liveness=WATCHFUL) as manager:
        instance = manager.create(spec())
        await manager.wait_ready("one", 60)
        assert instance.pid is not None
        os.kill(instance.pid, signal.SIGSTOP)
        await asyncio.sleep(0.5)  # one probe, perhaps two
        os.kill(instance.pid, signal.SIGCONT)
        await asyncio.sleep(1.0)
        assert instance.state is InstanceState.RUNNING


class StuckEngine:
    """A server with only /health, and /metrics as set in `metrics`."""

    def __init__(self) -> None:
        self.metrics = b""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.read(65536)
        body = self.metrics if b" /metrics " in head else b"ok"  # empty if the client has disconnected
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()


@pytest.mark.parametrize(
    ("metrics", "is_stuck"),
    [
        (b'vllm:num_requests_running{model="m"} 2.0\nvllm:generation_tokens_total{model="m"} 77.0\n', True),
        (b'vllm:num_requests_running{model="m"} 0.0\nvllm:generation_tokens_total{model="m"} 77.0\n', False),
        (b"llamacpp:requests_processing 1\nllamacpp:tokens_predicted_total 5\n", True),
        (b"some_other_engine 1\n", False),
        (b"", False),
    ],
)
async def test_an_engine_with_requests_that_takes_no_step_fails(metrics: bytes, is_stuck: bool) -> None:
    engine = StuckEngine()
    engine.metrics = metrics
    rules = LivenessRules(interval_s=0.02, stall_s=0.3, timeout_s=5)
    async with engine.serving() as url, probe_client() as client:
        watching = watch_liveness(client, ProbeTarget(url, "key", "/health", COMMAND), rules, time.monotonic)
        if is_stuck:
            with pytest.raises(LivenessFailed, match="has taken no step for 0 s while requests are pending"):
                await asyncio.wait_for(watching, 30)
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(watching, 1)
