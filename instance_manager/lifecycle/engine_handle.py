"""One engine process with its API key and its log, from the spawn to the post-mortem.

Changes no state and holds no port: both belong to the supervisor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

import httpx

from instance_manager.backends import Backend, backend_of
from instance_manager.backends.load_signs import LoadProgress, read_progress
from instance_manager.config import ManagerConfig
from instance_manager.lifecycle import spawning
from instance_manager.lifecycle.container_failures import classify_container_exit, not_executed
from instance_manager.lifecycle.failures import classify_exit, relevant_lines
from instance_manager.lifecycle.health import (
    LastProbe,
    Probe,
    WrongEngine,
    choose_model_name,
    reported_names,
    wait_until_ready,
)
from instance_manager.lifecycle.instance import Instance
from instance_manager.process.containers.process import ContainerProcess
from instance_manager.process.logs import LogFile
from instance_manager.process.process_group import EngineProcess
from instance_manager.state.recovery import FoundRun
from instance_manager.types import Container, FailureClass, InstanceFailure

logger = logging.getLogger("berth.manager")

_ADOPTION_TIMEOUT_S = 30.0  # a long prefill may keep an engine from answering for seconds


class EngineFailed(Exception):
    """The engine exited, never became ready, or could not be started at all."""

    def __init__(self, failure: InstanceFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class EngineHandle:
    """Created by `spawn` or `adopt`, done after `end` or `detach`."""

    def __init__(
        self,
        process: EngineProcess,
        log: LogFile,
        port: int,
        api_key: str,
        log_mark: int,
        backend: Backend,
        *,
        age_s: float = 0.0,
        ready_timeout_s: float | None = None,
    ) -> None:
        """`backend`: of its kind. `ready_timeout_s` replaces the start timeout."""
        self._process = process
        self._log = log
        self._log_mark = log_mark  # number of the last log line before this process
        self._backend = backend
        self._started = time.monotonic() - age_s
        self._ready_timeout_s = ready_timeout_s
        self._follower = asyncio.create_task(log.follow(), name=f"log of {process.pid}")
        self.port = port
        self.api_key = api_key
        self.exited = process.exited

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def located(self) -> asyncio.Task[Container | None] | None:
        """Done when its container runs, or it has ended; None = it isn't in one."""
        return self._process.located if isinstance(self._process, ContainerProcess) else None

    @property
    def pid_start_time(self) -> float | None:
        """Seconds since the epoch."""
        return self._process.start_time

    @classmethod
    async def spawn(cls, instance: Instance, log: LogFile, port: int, config: ManagerConfig) -> EngineHandle:
        """Start the instance's command on `port`, with its secrets. Raises EngineFailed."""
        secrets, backend = instance.secrets, backend_of(instance.spec.engine)
        if secrets is None:
            raise RuntimeError("an engine can't be started without a token and a key")
        log_mark = log.lines.last_number
        try:
            output = await log.open_for_engine()
        except OSError as error:
            message = (
                f"its log {log.path} can't be written: {error.strerror or error}; LOG_DIR says where logs are"
            )
            raise EngineFailed(InstanceFailure(FailureClass.CRASHED, message)) from error
        try:
            process = await spawning.spawn(instance, port, output, config)
        except OSError as error:
            raise EngineFailed(not_executed(instance.spec, instance.command, error)) from error
        finally:
            os.close(output)
        return cls(process, log, port, secrets.api_key, log_mark, backend)

    @classmethod
    def adopt(
        cls, instance: Instance, log: LogFile, port: int, found: FoundRun, config: ManagerConfig
    ) -> EngineHandle:
        """Adopt a process that a previous Berth process started; if it has ended since, `exited` is done.

        An engine that was ready must answer soon; one that was loading has the rest of its start timeout.
        """
        if found.status is None or found.secrets is None:
            raise RuntimeError("there is no process to adopt")
        process = spawning.adopt(instance, found.status, found.status_path, config)
        adopted = partial(
            cls, process, log, port, found.secrets.api_key, found.log_mark, backend_of(instance.spec.engine)
        )
        if found.was_ready:
            return adopted(ready_timeout_s=_ADOPTION_TIMEOUT_S)
        return adopted(age_s=max(0.0, time.time() - found.status.started_at))

    def load_progress(self) -> LoadProgress | None:
        """How far its start is, by its log."""
        return read_progress(self._log.latest(self._log_mark), self._backend.load_signs)

    async def wait_ready(
        self,
        client: httpx.AsyncClient,
        instance: Instance,
        config: ManagerConfig,
        interrupted: asyncio.Future[None],
    ) -> bool:
        """True once the engine is ready, False when `interrupted` is done first.

        Raises EngineFailed if the engine exits or the deadline passes first.
        """
        model = instance.served_model_name if instance.plan.must_name_model else None
        probe = self._probe(instance, model)
        last = LastProbe()
        probing = asyncio.create_task(wait_until_ready(client, probe, last), name=f"health of {self.pid}")
        try:
            while not probing.done() and not interrupted.done():
                remaining_s = self._deadline(config) - time.monotonic()
                if remaining_s <= 0:
                    raise await self._ready_timed_out(last)
                await asyncio.wait(
                    (probing, self.exited, interrupted),
                    timeout=remaining_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if self.exited.done():
                    raise await self.post_mortem(was_ready=False)
            if interrupted.done():
                return False
            probing.result()
            return True
        except WrongEngine as error:
            raise self.failed(FailureClass.UNHEALTHY, str(error)) from error
        finally:
            probing.cancel()
            await asyncio.wait((probing,))
            if not probing.cancelled():
                probing.exception()  # retrieved, even if another event came first

    async def reported_name(self, client: httpx.AsyncClient, instance: Instance) -> str | None:
        """The model name an engine reports that may ignore the given one; None if it reports none."""
        probe = self._probe(instance, None)
        names: list[str] = []

        async def query() -> None:
            names.extend(await reported_names(client, probe))

        await self.unless_exited(query())
        return choose_model_name(names, [instance.model_name, instance.spec.profile or ""])

    def _probe(self, instance: Instance, model: str | None) -> Probe:
        """`model`: that it must name."""
        return Probe(
            instance.host,
            self.port,
            self._process.port_owner,
            self.api_key,
            instance.plan.health_path,
            model,
            self._backend.api_key_variable,
        )

    async def unless_exited(self, call: Coroutine[Any, Any, None]) -> bool:
        """Await a call to the engine; False if the engine exits first."""
        calling = asyncio.create_task(call, name=f"call to {self.pid}")
        try:
            await asyncio.wait((calling, self.exited), return_when=asyncio.FIRST_COMPLETED)
            if self.exited.done():
                return False
            calling.result()
            return True
        finally:
            calling.cancel()
            await asyncio.wait((calling,))
            if not calling.cancelled():
                calling.exception()  # retrieved

    async def post_mortem(self, *, was_ready: bool) -> EngineFailed:
        """The failure of an exited engine, read once no process of its tree can write to the log any more."""
        stuck = await self.end(grace_s=0)
        return EngineFailed(stuck or self._failure_of_exit(was_ready=was_ready))

    def _failure_of_exit(self, *, was_ready: bool) -> InstanceFailure:
        returncode, tail, patterns = self.exited.result(), self._log_tail(), self._backend.log_patterns
        if isinstance(self._process, ContainerProcess):
            final = self._process.final
            return classify_container_exit(
                returncode, final, tail, patterns, was_ready=was_ready, image=self._process.image
            )
        return classify_exit(returncode, tail, patterns, was_ready=was_ready)

    async def end(self, grace_s: float) -> InstanceFailure | None:
        """End the whole process tree and read the log to its end. A failure only if it survives SIGKILL."""
        gone = await self._process.end(grace_s)
        self._log.finish()
        await asyncio.wait((self._follower,))
        if error := self._follower.exception():
            logger.error("following the log %s failed: %r", self._log.path, error)
        if gone:
            return None
        return InstanceFailure(FailureClass.UNHEALTHY, f"processes of engine {self.pid} survived SIGKILL")

    @property
    def can_be_detached(self) -> bool:
        """Whether a later Berth process could adopt the engine."""
        return self._process.can_be_adopted

    async def detach(self) -> None:
        """Stop watching the engine and let it keep running."""
        self._process.detach()
        self._log.finish()
        await asyncio.wait((self._follower,))

    def abandon(self) -> None:
        """Kill the tree without waiting, for callers that can't await."""
        self._process.kill_now()
        self._follower.cancel()

    def _deadline(self, config: ManagerConfig) -> float:
        """Monotonic seconds. A start that makes progress in its log gets more time, up to the cap."""
        if self._ready_timeout_s is not None:
            return self._started + self._ready_timeout_s
        return min(self._last_progress + config.start_timeout_s, self._started + config.start_timeout_cap_s)

    @property
    def _last_progress(self) -> float:
        return max(self._started, self._log.grown_at)

    async def _ready_timed_out(self, last: LastProbe) -> EngineFailed:
        problem = f"{last.problem}{await self._other_ports()}"
        if self._ready_timeout_s is None:
            return self.failed(FailureClass.START_TIMEOUT, self._timeout_message(problem))
        message = (
            "it was started by a previous Berth process and "
            f"has not answered this one for {self._ready_timeout_s:.0f} s: {problem}"
        )
        return self.failed(FailureClass.UNHEALTHY, message)

    async def _other_ports(self) -> str:
        """The ports it listens on instead: its command may lack {port}."""
        ports = await asyncio.to_thread(self._process.listening_ports)
        if not ports or self.port in ports:
            return ""
        return f"; its process listens on port {' and '.join(map(str, ports))} instead"

    def _timeout_message(self, problem: str) -> str:
        now = time.monotonic()
        return (
            f"not ready after {now - self._started:.1f} s, the last {now - self._last_progress:.1f} s "
            f"without output in its log; {problem}; START_TIMEOUT sets how long an engine may be silent"
        )

    def failed(self, failure_class: FailureClass, message: str) -> EngineFailed:
        """The failure, with the end of the log."""
        return EngineFailed(InstanceFailure(failure_class, message, log_tail=tuple(self._log_tail())))

    def _log_tail(self) -> list[str]:
        return relevant_lines(self._log.lines.since(self._log_mark), self._backend.log_patterns)
