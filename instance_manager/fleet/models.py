"""One model that clients can request by name: its replicas, its queue, and how its last start went."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b

from instance_manager.backends.checkpoint import Checkpoint
from instance_manager.backends.load_signs import LoadProgress
from instance_manager.backends.params import takes_adapters
from instance_manager.backends.runner_kind import RunnerKind, can_serve
from instance_manager.config import RestartRules
from instance_manager.errors import InstanceFailedToStart, ManagerError, without_folders
from instance_manager.fleet.model_queue import ModelQueue
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.lifecycle.failures import start_error
from instance_manager.lifecycle.gate import Lease
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.restart_backoff import RestartBackoff
from instance_manager.types import Event, FailureClass, InstanceState

_ALIVE = frozenset({InstanceState.RUNNING, InstanceState.SLEEPING, InstanceState.WAKING})


class Model:
    """Read anywhere, written by the fleet only."""

    def __init__(
        self,
        name: str,
        profile: ModelProfile | None,
        max_queue: int,
        clock: Callable[[], float],
        *,
        restart: RestartRules | None = None,
        find_checkpoint: Callable[[ModelProfile], Checkpoint | None] = lambda profile: None,
    ) -> None:
        """`profile`: None where instances were created by hand and the catalog has no entry."""
        self.name = name
        self.profile = profile
        self.start_problem: str | None = None  # found in its entry: flags, folders, programs, GPUs
        self.replicas: dict[str, Instance] = {}  # by id, ended ones included
        self.queue = ModelQueue(name, max_queue, clock)
        self.is_loading = False  # a replica is being started or woken
        self.loading_runner: RunnerKind | None = None  # what that replica will serve
        self.num_stops = 0  # under way, during which no replica starts
        self.start_requested = False  # of one replica more than are awake
        self.load_samples: list[int] = []  # requests in flight plus waiting, the latest last
        self.error: ManagerError | None = None  # of the last start, until one succeeds
        self.backoff = RestartBackoff(restart or RestartRules(), clock)
        self._find_checkpoint = find_checkpoint
        self._checkpoint: tuple[ModelProfile, Checkpoint | None] | None = None

    def __repr__(self) -> str:
        return f"<Model {self.name} {len(self.replicas)} replicas, {len(self.queue)} waiting>"

    def problem(self, *, public: bool = False) -> str | None:
        """Why it can't be started: known beforehand, or of its last start, if no replica runs.

        `public`: for clients that may not read logs. Blocks for a moment.
        """
        checkpoint = self._current_checkpoint
        of_files = checkpoint and (checkpoint.problem or checkpoint.flag_problem)
        of_scan = None if self.profile is None else self.profile.file_problem
        known = of_files or of_scan or self.start_problem
        if known is None:
            return self._last_failure(public)
        paths = () if checkpoint is None else checkpoint.paths
        return without_folders(known, *paths) if public else known

    def _last_failure(self, public: bool) -> str | None:
        if self.error is None or self.awake:
            return None
        text = self.error.public if public else self.error.message
        return (
            text.removeprefix(f"model {self.name!r} ").removeprefix("can't be run: ").removeprefix("failed: ")
        )

    @property
    def refusal(self) -> ManagerError | None:
        """For requests: its engine would refuse its files as they now are, or its flags beside them.

        Blocks for a moment.
        """
        checkpoint = self._current_checkpoint
        return None if checkpoint is None else checkpoint.refusal(self.name)

    @property
    def _current_checkpoint(self) -> Checkpoint | None:
        if self.profile is None:
            return None
        if self._checkpoint is None or self._checkpoint[0] is not self.profile:
            self._checkpoint = (self.profile, self._find_checkpoint(self.profile))
        return self._checkpoint[1]

    @property
    def takes_adapters(self) -> bool:
        """Whether requests can name LoRA adapters of its engines."""
        if self.profile is not None:
            return takes_adapters(self.profile.params)
        return any(takes_adapters(one.plan.params) for one in self.live)

    @property
    def awake(self) -> list[Instance]:
        """Replicas that accept requests."""
        return [one for one in self.replicas.values() if one.gate.is_open]

    @property
    def live(self) -> list[Instance]:
        """Replicas that have a process."""
        return [one for one in self.replicas.values() if not one.state.is_terminal]

    @property
    def is_starting(self) -> bool:
        """Whether a replica is starting or waking and needs nothing further."""
        return self.is_loading or any(one.state.is_pending for one in self.replicas.values())

    @property
    def load_progress(self) -> LoadProgress | None:
        """How far the start of a replica is; None = unknown, or none is starting."""
        found = (one.load_progress for one in self.replicas.values())
        return next((progress for progress in found if progress is not None), None)

    @property
    def is_changing(self) -> bool:
        """Whether a replica is about to stop, sleep or fail: what it lacks is known only afterwards."""
        return any(
            one.state is InstanceState.RUNNING and not one.gate.is_open for one in self.replicas.values()
        )

    @property
    def max_replicas(self) -> int:
        """At least 1; for instances created by hand, as many as there are."""
        return len(self.live) if self.profile is None else max(self.profile.max_replicas, 1)

    def is_up_for(self, need: RunnerKind | None) -> bool:
        """Whether a replica accepts requests with this need, or is starting or waking to do so."""
        if self.is_loading and can_serve(self.loading_runner, need):
            return True
        return any(
            can_serve(one.runner, need) and (one.gate.is_open or one.state.is_pending)
            for one in self.replicas.values()
        )

    def is_awake_for(self, need: RunnerKind | None) -> bool:
        """Whether a replica accepts requests with this need now."""
        return any(one.gate.is_open and can_serve(one.runner, need) for one in self.replicas.values())

    @property
    def is_listed(self) -> bool:
        """Whether it can be requested: it is in the catalog or on disk, or an instance serves it."""
        return self.profile is not None or bool(self.live) or bool(self.queue)

    @property
    def is_unlisted(self) -> bool:
        """Whether clients can use it, but see it in no list."""
        return self.profile is not None and self.profile.unlisted

    @property
    def in_flight(self) -> int:
        return sum(one.gate.in_flight for one in self.replicas.values())

    @property
    def status(self) -> str:
        """running, starting, sleeping, failed or stopped: the best state among its replicas."""
        states = {one.state for one in self.replicas.values()}
        if any(one.gate.is_open for one in self.replicas.values()):
            return "running"
        if self.is_starting or self.start_requested:  # the latter may wait for memory
            return "starting"
        if InstanceState.SLEEPING in states or InstanceState.RUNNING in states:  # or about to sleep
            return "sleeping"
        has_failed = self.error is not None or self.backoff.restart_at is not None
        return "failed" if has_failed else "stopped"

    def try_lease(self, affinity: bytes = b"", need: RunnerKind | None = None) -> Lease | None:
        """A lease of the replica with the fewest requests in flight; `affinity` breaks ties.

        The same affinity prefers the same replica, whose prefix cache may hold the prompt's beginning.
        """
        if len(self.replicas) == 1:
            (only,) = self.replicas.values()
            return only.gate.try_acquire() if can_serve(only.runner, need) else None
        for instance in self._by_load(affinity, need):
            if (lease := instance.gate.try_acquire()) is not None:
                return lease
        return None

    def grant(self) -> None:
        """Give leases to waiting requests, as far as the replicas have capacity."""
        if self.queue:
            for need in self.queue.needs:
                self.queue.grant(partial(self.try_lease, need=need), need)

    def record_start(self) -> None:
        self.error = None
        self.backoff.record_start()

    def reset_backoff(self) -> None:
        """An explicit request: try the next start at once."""
        self.backoff.reset()

    def clear_failure(self) -> None:
        """Count the model as stopped, not failed; its next start is a first one."""
        self.error = None
        self.backoff.reset()

    def record_failure(self, error: ManagerError) -> None:
        """A start failed."""
        self.error = error
        self.backoff.record_failure(was_ready=False)
        if self.profile is None:
            self.backoff.restart_at = None  # the supervisor of its instance restarts it

    def recall_failure(self, replica: Instance) -> None:
        """A replica that an earlier Berth process could not start: its failure is the last start's."""
        failure = replica.failure
        if replica.state is not InstanceState.FAILED or failure is None or replica.ready_at is not None:
            return
        if failure.failure_class is not FailureClass.LOST:
            self.error = start_error(f"model {self.name!r}", failure, replica.instance_id)

    def record_state(self, replica: Instance, event: Event) -> None:
        """A replica's state has changed, whether the fleet, a client or a failure has caused that."""
        status, previous = event.data["status"], event.data["previous"]
        if status == InstanceState.RUNNING:
            self.record_start()
        elif status == InstanceState.STARTING:
            self.backoff.restart_at = None  # this is the restart, or takes its place
        elif status == InstanceState.FAILED and previous in _ALIVE:
            self._record_crash(replica, event.data["reason"])
        elif status == InstanceState.FAILED and self.profile is None and replica.failure is not None:
            # A model of the catalog is started by the scaler, which records its failures.
            self.error = start_error(f"model {self.name!r}", replica.failure, replica.instance_id)
        elif status == InstanceState.STOPPED and previous == InstanceState.FAILED:
            self.clear_failure()  # a failed replica was stopped on request

    def _record_crash(self, replica: Instance, reason: str) -> None:
        """A running replica failed. The first is replaced at once if a request needs it."""
        self.backoff.record_failure(was_ready=True)
        if self.backoff.wait_s > 0:
            what = f"model {self.name!r} died while it ran"
            public = f"{what}; an admin can read the reason in GET /instances/{replica.instance_id}"
            self.error = InstanceFailedToStart(f"{what}: {reason}", public=public)
        if replica.spec.profile is None:
            self.backoff.restart_at = None  # as above

    def _by_load(self, affinity: bytes, need: RunnerKind | None) -> Iterator[Instance]:
        awake = [one for one in self.awake if can_serve(one.runner, need)]

        def by_load(one: Instance) -> tuple[int, bytes]:
            digest = blake2b(affinity + one.instance_id.encode(), digest_size=8).digest() if affinity else b""
            return one.gate.in_flight, digest

        yield from sorted(awake, key=by_load)
