"""The set of instances, each with its supervisor's task."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from instance_manager.backends import plan_launch
from instance_manager.config import ManagerConfig
from instance_manager.errors import InstanceExists, InstanceNotFound
from instance_manager.events import EventLog
from instance_manager.lifecycle.context import SupervisorContext
from instance_manager.lifecycle.gate import Gate, GateObserver
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.instance_record import instance_of, new_instance
from instance_manager.lifecycle.spawning import runtime_environment
from instance_manager.lifecycle.specs import new_instance_id
from instance_manager.lifecycle.supervisor import Supervisor
from instance_manager.process.containers.command import run_id_of
from instance_manager.process.containers.leftovers import remove_leftovers
from instance_manager.process.logs import LogFile
from instance_manager.state.recovery import RecoveredInstance, RecoveryAction
from instance_manager.state.session import StateSession
from instance_manager.state.stores.records import InstanceRecord
from instance_manager.types import InstanceSpec, InstanceState

logger = logging.getLogger("berth.manager")


class InstanceRegistry:
    """Only the manager changes it."""

    def __init__(
        self, config: ManagerConfig, events: EventLog, clock: Callable[[], float], observer: GateObserver
    ) -> None:
        """`observer`: of all gates."""
        self.supervisors: dict[str, Supervisor] = {}
        self.gates: dict[str, Gate] = {}  # of the same instances, for the forwarding path
        self._config = config
        self._events = events
        self._clock = clock
        self._observer = observer
        self._is_closing = False

    def close(self) -> None:
        """A shutdown begins: from now on ended instances are kept."""
        self._is_closing = True

    def find(self, instance_id: str) -> Supervisor:
        """Raises InstanceNotFound."""
        supervisor = self.supervisors.get(instance_id)
        if supervisor is None:
            raise InstanceNotFound(f"there is no instance {instance_id!r}", param="instance_id")
        return supervisor

    def unused_id(self, model_name: str) -> str:
        """An id for another instance of the model."""
        while (instance_id := new_instance_id(model_name)) in self.supervisors:
            pass
        return instance_id

    def add(
        self,
        spec: InstanceSpec,
        instance_id: str | None,
        context: SupervisorContext,
        tasks: asyncio.TaskGroup,
    ) -> Instance:
        """Create an instance with a port and start its supervisor. Raises like `InstanceManager.create`."""
        if instance_id in self.supervisors:
            raise InstanceExists(
                f"an instance named {instance_id!r} already exists "
                f"({self.supervisors[instance_id].instance.state}); start or delete it, or use another name",
                param="name",
            )
        plan = plan_launch(spec, self._config)
        instance_id = instance_id or self.unused_id(spec.model_name)
        port = context.ports.take()
        instance = new_instance(
            instance_id,
            spec,
            plan,
            config=self._config,
            events=self._events,
            clock=self._clock,
            port=port,
            log_path=self._config.log_path(instance_id),
            observer=self._observer,
        )
        self._add(Supervisor(instance, self._log_file(instance), context, port), tasks)
        instance.set_initial_state(InstanceState.STARTING, "created")
        return instance

    async def recover(
        self, recovered: RecoveredInstance, context: SupervisorContext, tasks: asyncio.TaskGroup
    ) -> Instance:
        """Restore an instance of a previous Berth process; its supervisor adopts the engine if it can."""
        record = recovered.record
        instance = instance_of(record, self._config, self._events, self._clock, self._observer)
        log = self._log_file(instance)
        run = replace(recovered.run, log_mark=await log.resume(instance.log_start))
        if run.action is RecoveryAction.ADOPT and record.port is not None:
            context.ports.hold(record.port)
            instance.port = record.port
        self._add(Supervisor(instance, log, context, instance.port, run), tasks)
        if run.state is not record.state:
            instance.set_initial_state(run.state, "left by a previous Berth process", previous=record.state)
        return instance

    def leftover_containers(self, session: StateSession) -> Coroutine[Any, Any, None] | None:
        """Removes containers of earlier runs; None if another process may have this node's name."""
        if not session.is_sole:
            return None
        folder = self._config.status_path("any").parent
        return remove_leftovers(
            session.owner, self._is_current_run, folder, runtime_environment(self._config)
        )

    def _is_current_run(self, run_id: str) -> bool:
        instances = (one.instance for one in self.supervisors.values())
        tokens = (one.secrets.token for one in instances if one.secrets and not one.state.is_terminal)
        return any(run_id_of(token) == run_id for token in tokens)

    def describe(self, instance_id: str, session: StateSession) -> InstanceRecord | None:
        """The instance's record to store now; None once it is deleted."""
        supervisor = self.supervisors.get(instance_id)
        if supervisor is None:
            return None
        return supervisor.instance.stored(session.owner, session.boot_id, is_wanted=supervisor.should_run)

    def _add(self, supervisor: Supervisor, tasks: asyncio.TaskGroup) -> None:
        instance = supervisor.instance
        self.supervisors[instance.instance_id] = supervisor
        self.gates[instance.instance_id] = instance.gate
        tasks.create_task(self._supervise(supervisor), name=f"supervisor of {instance.instance_id}")

    async def _supervise(self, supervisor: Supervisor) -> None:
        instance_id = supervisor.instance.instance_id
        try:
            await supervisor.run()
        except Exception:
            logger.exception("instance=%s: its supervisor failed", instance_id)
        try:
            if not self._is_closing:
                await self._remove(supervisor)
        finally:  # so that `InstanceManager.delete` never waits for ever
            supervisor.is_removed = True
            supervisor.instance.notify()

    async def _remove(self, supervisor: Supervisor) -> None:
        instance_id = supervisor.instance.instance_id
        try:
            await supervisor.log.remove()
        except Exception:
            logger.exception("instance=%s: its log can't be deleted", instance_id)
        try:
            await asyncio.to_thread(self._config.status_path(instance_id).unlink, missing_ok=True)
        except OSError as error:
            logger.warning("instance=%s: its status file can't be deleted: %s", instance_id, error)
        del self.supervisors[instance_id], self.gates[instance_id]
        self._events.publish("instance.deleted", instance_id)

    def _log_file(self, instance: Instance) -> LogFile:
        config = self._config
        return LogFile(instance.log_path, max_bytes=config.log_max_bytes, ring_lines=config.log_ring_lines)
