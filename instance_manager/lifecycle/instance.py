"""One instance as the rest of Berth sees it: its state, its gate and its JSON."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from instance_manager.backends import LaunchPlan, backend_of
from instance_manager.backends.load_signs import LoadProgress
from instance_manager.backends.params import adapter_names, mask_command
from instance_manager.backends.runner_kind import RunnerKind
from instance_manager.events import EventLog
from instance_manager.lifecycle.gate import Gate
from instance_manager.lifecycle.instance_view import InstanceView, LiveFacts, failure_record
from instance_manager.lifecycle.last_use import LAST_USE_PRECISION_S
from instance_manager.memory.devices import Device
from instance_manager.memory.victims import EvictionAction, Resident
from instance_manager.state.stores.records import InstanceRecord
from instance_manager.types import (
    TRANSITIONS,
    Container,
    Endpoint,
    InstanceFailure,
    InstanceSpec,
    InstanceState,
    InvalidTransition,
    RunSecrets,
)

logger = logging.getLogger("berth.manager")

# Fields of a record that `Instance.stored` converts; all others are the instance's, under the same name.
_CONVERTED = frozenset(
    (
        *("owner", "params", "command", "boot_id", "token", "api_key", "log_path", "failure", "timeout_s"),
        *("sleep_level", "last_active", "updated_at", "extra", "version"),
    )
)
SHARED_FIELDS = tuple(each.name for each in fields(InstanceRecord) if each.name not in _CONVERTED)


class Instance:
    """Written on the event loop only, without an await between writing and publishing. Writers, by attribute:

    - state, reason, failure and their times: `set_state` and `set_initial_state`, called by the supervisor,
      its run and its sleep helpers. A request that takes effect at once (`request_start`, `request_stop` of a
      failed instance, `record_sleep`) calls them from the caller's task; all others set the desired state.
    - level, process, port, secrets, command and log position: the same classes, and the port lease.
    - idle timeout and pin: the manager (`set_policy`). Other names: the fleet (`set_other_names`). Memory:
      the memory planner (`set_memory`).
    - everything, before it is published: `new_instance`, `instance_of` and the registry.

    Nothing outside this package assigns an attribute (tested). Times without `_at` in the name are durations.
    """

    def __init__(
        self,
        instance_id: str,
        spec: InstanceSpec,
        plan: LaunchPlan,
        *,
        gate: Gate,
        events: EventLog,
        host: str,
        port: int | None,
        idle_timeout_s: float,
        log_path: Path,
        clock: Callable[[], float],
    ) -> None:
        """The caller completes the instance, then publishes it with `set_initial_state`."""
        self.instance_id = instance_id
        self.spec = spec
        self.plan = plan
        self.gate = gate
        self.state = InstanceState.STARTING
        self.status_reason = "created"
        self.failure: InstanceFailure | None = None
        self.idle_timeout_s = idle_timeout_s
        self.pinned = spec.pinned
        self.other_names: tuple[str, ...] = ()  # of its catalog model, set by the fleet
        self.is_unlisted = False  # its model is in no list for clients, likewise
        self.reported_name: str | None = None  # by its engine, if that may ignore the given name
        self.level = 0  # of sleep: 1 or 2; 0 = awake
        self.awake_since: float | None = None  # monotonic seconds
        self.host = host
        self.port = port
        self.pid: int | None = None
        self.pid_start_time: float | None = None
        self.pid_start_ticks: int | None = None  # since boot
        self.container: Container | None = None  # of the current process, once it runs
        self.secrets: RunSecrets | None = None  # of the current process or the last one
        self.log_start = 0  # byte offset of the current process's first log line
        self.command: list[str] = []
        self.memory_bytes: int | None = None
        self.gpu_memory_bytes: int | None = None  # of these, on GPUs; None = not measured by this process
        self.created_at = time.time()
        self.started_at = self.created_at  # when it last left a terminal state
        self.ready_at: float | None = None
        self.generation = 0  # number of the current process; keeps counting when Berth restarts
        self.log_path = log_path
        self._events = events
        self._clock = clock
        self._read_load: Callable[[], LoadProgress | None] | None = None
        self._changed = asyncio.Event()  # replaced each time it is set

    @property
    def model_name(self) -> str:
        return self.spec.model_name

    @property
    def served_model_name(self) -> str:
        """The name the engine answers to: the one it reported, else the one it was started with."""
        return self.reported_name or self.plan.served_model_name

    @property
    def names(self) -> tuple[str, ...]:
        """The model names under which clients may request it."""
        if self.spec.profile is not None:
            return (self.spec.profile, *self.other_names)
        served = self.plan.params.get("served_model_name") or ()
        all_served = (served,) if isinstance(served, str) else tuple(served)
        own = (self.served_model_name, *all_served, self.model_name, *adapter_names(self.plan.params))
        return tuple(dict.fromkeys(own))

    @property
    def runner(self) -> RunnerKind | None:
        """What its engine can serve; None = unknown."""
        return self.plan.runner

    def resident(
        self,
        held: Mapping[Device, int] | None = None,
        held_asleep: Mapping[int, Mapping[Device, int]] | None = None,
    ) -> Resident:
        """What decides whether it may have to go; `held`: its bytes now and by level of sleep, if known."""
        is_pending = self.state.is_pending  # a waking instance counts as awake, and isn't evicted
        return Resident(
            instance_id=self.instance_id,
            model_name=self.spec.profile or self.model_name,
            level=0 if is_pending else self.level,
            held=held or {},
            held_asleep=held_asleep or {},
            in_flight=self.gate.in_flight,
            queued=self.gate.queued,
            pinned=self.pinned,
            last_used=self.gate.last_active,
            resident_since=math.inf if is_pending else (self.awake_since or 0.0),
            leaving=EvictionAction.STOP if self.state is InstanceState.STOPPING else None,
            idle_timeout_s=self.idle_timeout_s,
        )

    def endpoint(self, port: int, api_key: str) -> Endpoint:
        """Where its current process listens."""
        backend = backend_of(self.spec.engine)
        return Endpoint(
            self.host,
            port,
            api_key,
            self.generation,
            served_name=self.served_model_name,
            adapters=adapter_names(self.plan.params),
            isolates_tenants=self.plan.isolates_tenants,
            speaks=dict.fromkeys(backend.speaks, True) | dict.fromkeys(backend.translated, False),
            keeps_connections=self.plan.keeps_connections,
        )

    def set_initial_state(
        self, state: InstanceState, reason: str, *, previous: InstanceState | None = None
    ) -> None:
        """Set and publish the first state; `previous`: the last one under a previous Berth process."""
        self.state = state
        self.status_reason = reason
        self._publish_state(previous)

    def publish_update(self, data: Mapping[str, Any]) -> None:
        """Emit `instance.updated`: something other than the state has changed."""
        self._events.publish("instance.updated", self.instance_id, data)
        self.notify()

    def set_state(self, state: InstanceState, reason: str, failure: InstanceFailure | None = None) -> None:
        """Change the state, log it, emit `instance.state` and wake all waiters. Raises InvalidTransition."""
        previous = self.state
        if state not in TRANSITIONS[previous]:
            raise InvalidTransition(f"{self.instance_id}: {state} can't follow {previous} ({reason})")
        self.state = state
        self.status_reason = reason
        if state is InstanceState.STARTING:
            self.failure = None
            self.ready_at = None
            if previous.is_terminal:
                self.started_at = time.time()
        elif state is InstanceState.RUNNING:
            self.awake_since = self._clock()
            if self.ready_at is None:
                self.ready_at = time.time()
        elif state is InstanceState.FAILED:
            self.failure = failure
        self._publish_state(previous)

    @property
    def load_progress(self) -> LoadProgress | None:
        """How far its start is; None if it isn't starting, or that is unknown."""
        read = self._read_load if self.state is InstanceState.HEALTH_CHECKING else None
        return None if read is None else read()

    def set_load_reader(self, read: Callable[[], LoadProgress | None]) -> None:
        """Called by its run: reads how far the start of its process is."""
        self._read_load = read

    def set_policy(self, idle_timeout_s: float | None, pinned: bool | None) -> None:
        """Called by the manager: change what is not None. Equal values, as in each request, are no event."""
        before = (self.idle_timeout_s, self.pinned)
        self.idle_timeout_s = before[0] if idle_timeout_s is None else idle_timeout_s
        self.pinned = before[1] if pinned is None else pinned
        if before != (self.idle_timeout_s, self.pinned):
            self.publish_update({"timeout": self.idle_timeout_s, "pinned": self.pinned})

    def set_other_names(self, names: tuple[str, ...], *, is_unlisted: bool) -> bool:
        """Called by the fleet: what the catalog says of its model's names. Returns whether that is new."""
        before = self.other_names, self.is_unlisted
        self.other_names, self.is_unlisted = names, is_unlisted
        return before != (names, is_unlisted)

    def set_memory(self, num_bytes: int, on_gpus: int = 0) -> None:
        """Called by the memory planner, which has measured the process."""
        self.memory_bytes, self.gpu_memory_bytes = num_bytes, on_gpus

    def set_process(self, pid: int | None, start_time: float | None, start_ticks: int | None) -> None:
        """Called by its run: the process to which everything from here on refers; None = it is gone."""
        self.pid, self.pid_start_time, self.pid_start_ticks = pid, start_time, start_ticks
        self.memory_bytes = self.gpu_memory_bytes = self.container = None

    def set_container(self, container: Container) -> None:
        """Called by its run: the container that the current process has started runs."""
        self.container = container
        self.publish_update({"container": container.name})

    async def wait_for_change(self) -> None:
        """Return after the next `notify`, which follows every change of state."""
        await self._changed.wait()

    def notify(self) -> None:
        """Wake all callers of `wait_for_change`."""
        self._changed.set()
        self._changed = asyncio.Event()

    def stored(self, owner: str, boot_id: str | None, *, is_wanted: bool) -> InstanceRecord:
        """All that a later Berth process needs. `is_wanted`: it runs, or will without further requests."""
        secrets = self.secrets
        return InstanceRecord(
            **{name: getattr(self, name) for name in SHARED_FIELDS},
            owner=owner,
            params=self.plan.params,
            command=tuple(mask_command(self.command)),
            boot_id=boot_id,
            token=None if secrets is None else secrets.token,
            api_key=None if secrets is None else secrets.api_key,
            log_path=str(self.log_path),
            failure=None if self.failure is None else failure_record(self.failure),
            timeout_s=self.idle_timeout_s,
            sleep_level=self.level,
            last_active=self._at(self.gate.last_use),
            updated_at=time.time(),
            extra={
                "is_wanted": is_wanted,
                "last_active_precision_s": LAST_USE_PRECISION_S,
                "log_start": self.log_start,
                "names": list(self.names),
                **({"unlisted": True} if self.is_unlisted else {}),
                "runner": self.runner,
                **({} if self.container is None else {"container": asdict(self.container)}),
            },
        )

    def view(self) -> InstanceView:
        """The instance as clients see it now."""
        expires = self.resident().expires_at if self.state is InstanceState.RUNNING else None
        live = LiveFacts(
            pid_start_time=self.pid_start_time,
            expires_at=None if expires is None else self._at(expires),
            last_active=self.last_active_at,
            in_flight=self.gate.in_flight,
            load=self.load_progress,
        )
        return InstanceView(self.stored("", None, is_wanted=False), live)

    def record(self) -> dict[str, Any]:
        """The view as JSON."""
        return self.view().to_json()

    @property
    def last_active_at(self) -> float:
        """When it was last used; seconds since the epoch."""
        return self._at(self.gate.last_active)

    def _at(self, moment: float) -> float:
        """A moment of our clock in seconds since the epoch."""
        return moment + time.time() - self._clock()

    def __repr__(self) -> str:
        return f"<Instance {self.instance_id} {self.state} port={self.port} pid={self.pid}>"

    def _publish_state(self, previous: InstanceState | None) -> None:
        level = logging.WARNING if self.state is InstanceState.FAILED else logging.INFO
        facts = (self.instance_id, previous, self.state, self.port, self.pid, self.status_reason)
        logger.log(level, "instance=%s %s -> %s port=%s pid=%s reason=%r", *facts)
        data: dict[str, Any] = {
            "status": self.state.value,
            "previous": None if previous is None else previous.value,
            "reason": self.status_reason,
            "model_name": self.spec.model_name,
            "in_flight": self.gate.in_flight,
        }
        if self.state is InstanceState.FAILED and self.failure is not None:
            data["error"] = failure_record(self.failure)
        self._events.publish("instance.state", self.instance_id, data)
        self.notify()
