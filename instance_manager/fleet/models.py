"""One model that can be asked for by name: its replicas, who waits for them, and how its last start went."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b

from instance_manager.backends.runner_kind import RunnerKind, can_serve
from instance_manager.errors import ManagerError
from instance_manager.fleet.model_queue import ModelQueue
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.lifecycle.gate import Lease
from instance_manager.lifecycle.instance import Instance
from instance_manager.memory.checkpoint import Checkpoint
from instance_manager.types import InstanceState

_FIRST_BACK_OFF_S = 10.0
_LONGEST_BACK_OFF_S = 300.0
_DEATHS_WINDOW_S = 600.0


class Model:
    """Read by everyone, written by the fleet alone."""

    def __init__(
        self,
        name: str,
        profile: ModelProfile | None,
        max_queue: int,
        clock: Callable[[], float],
        *,
        find_checkpoint: Callable[[ModelProfile], Checkpoint | None] = lambda profile: None,
    ) -> None:
        """`profile`: None where instances were created by hand and nothing else is known."""
        self.name = name
        self.profile = profile
        self.start_problem: str | None = None  # of its entry: flags, folders, programs, GPUs
        self.replicas: dict[str, Instance] = {}  # by id, ended ones included
        self.queue = ModelQueue(name, max_queue, clock)
        self.is_loading = False  # a replica is being started or woken
        self.loading_runner: RunnerKind | None = None  # what that one will serve
        self.wants_another = False  # one more than are awake
        self.load_samples: list[int] = []  # requests in flight and waiting, the latest last
        self.error: ManagerError | None = None  # of the last start, until one succeeds
        self.retry_at = 0.0  # monotonic seconds; sooner, nothing is started
        self._failures = 0
        self._deaths: list[float] = []  # of replicas that had been running, the latest last
        self._clock = clock
        self._find_checkpoint = find_checkpoint
        self._checkpoint: tuple[ModelProfile, Checkpoint | None] | None = None

    def __repr__(self) -> str:
        return f"<Model {self.name} {len(self.replicas)} replicas, {len(self.queue)} waiting>"

    @property
    def problem(self) -> str | None:
        """Why it can't be started, as far as that shows beforehand. Blocks for a moment."""
        return self.checkpoint_problem or self.start_problem

    @property
    def checkpoint_problem(self) -> str | None:
        """Why its files can't be run by its engine. Blocks for a moment."""
        if self.profile is None:
            return None
        if self._checkpoint is None or self._checkpoint[0] is not self.profile:
            self._checkpoint = (self.profile, self._find_checkpoint(self.profile))
        checkpoint = self._checkpoint[1]
        return None if checkpoint is None else checkpoint.problem

    @property
    def awake(self) -> list[Instance]:
        """Replicas that take requests."""
        return [one for one in self.replicas.values() if one.gate.is_open]

    @property
    def live(self) -> list[Instance]:
        """Replicas that have a process."""
        return [one for one in self.replicas.values() if not one.state.is_terminal]

    @property
    def is_starting(self) -> bool:
        """Whether a replica is on its way to running, by itself."""
        return self.is_loading or any(one.state.is_pending for one in self.replicas.values())

    def is_up_for(self, need: RunnerKind | None) -> bool:
        """Whether a replica takes requests that need this, or will by itself."""
        if self.is_loading and can_serve(self.loading_runner, need):
            return True
        return any(
            can_serve(one.runner, need) and (one.gate.is_open or one.state.is_pending)
            for one in self.replicas.values()
        )

    def is_awake_for(self, need: RunnerKind | None) -> bool:
        """Whether a replica takes requests that need this."""
        return any(one.gate.is_open and can_serve(one.runner, need) for one in self.replicas.values())

    @property
    def is_listed(self) -> bool:
        """Whether it can be asked for: the catalog or a disk has it, or an instance is there to answer."""
        return self.profile is not None or bool(self.live) or bool(self.queue)

    @property
    def in_flight(self) -> int:
        return sum(one.gate.in_flight for one in self.replicas.values())

    @property
    def status(self) -> str:
        """running, starting, sleeping, failed or stopped: the best of its replicas'."""
        states = {one.state for one in self.replicas.values()}
        if any(one.gate.is_open for one in self.replicas.values()):
            return "running"
        if self.is_starting or self.wants_another:  # which may wait for room
            return "starting"
        if InstanceState.SLEEPING in states or InstanceState.RUNNING in states:  # or about to sleep
            return "sleeping"
        return "failed" if self.error is not None else "stopped"

    def take(self, affinity: bytes = b"", need: RunnerKind | None = None) -> Lease | None:
        """A lease of the replica with the fewest requests in flight; equals are told apart by `affinity`.

        The same affinity prefers the same replica, whose cache may know the prompt's beginning.
        """
        if len(self.replicas) == 1:
            (only,) = self.replicas.values()
            return only.gate.try_acquire() if can_serve(only.runner, need) else None
        for instance in self._by_load(affinity, need):
            if (lease := instance.gate.try_acquire()) is not None:
                return lease
        return None

    def grant(self) -> None:
        """Serve those who wait, as far as there is room."""
        if self.queue:
            for need in self.queue.needs:
                self.queue.grant(partial(self.take, need=need), need)

    def started(self) -> None:
        self.error, self._failures, self.retry_at = None, 0, 0.0

    def reset_backoff(self) -> None:
        """Somebody asks for another try: it is not put off any longer."""
        self.retry_at = 0.0
        self._deaths.clear()

    def clear_failure(self) -> None:
        """Somebody has stopped it: it is stopped, not failed, and its next start is a first one."""
        self.started()
        self._deaths.clear()

    def failed(self, error: ManagerError) -> None:
        """Note it; the next start is put off, each time longer."""
        back_off_s = min(_FIRST_BACK_OFF_S * 2**self._failures, _LONGEST_BACK_OFF_S)
        self._failures += 1
        self.error, self.retry_at = error, self._clock() + back_off_s

    def died(self, error: ManagerError) -> None:
        """A replica that ran has failed: the first is replaced at once, more of them each time later."""
        now = self._clock()
        self._deaths = [time for time in self._deaths if now - time < _DEATHS_WINDOW_S] + [now]
        if len(self._deaths) > 1:
            back_off_s = min(_FIRST_BACK_OFF_S * 2 ** (len(self._deaths) - 2), _LONGEST_BACK_OFF_S)
            self.error, self.retry_at = error, now + back_off_s

    def _by_load(self, affinity: bytes, need: RunnerKind | None) -> Iterator[Instance]:
        awake = [one for one in self.awake if can_serve(one.runner, need)]

        def rank(one: Instance) -> tuple[int, bytes]:
            mixed = blake2b(affinity + one.instance_id.encode(), digest_size=8).digest() if affinity else b""
            return one.gate.in_flight, mixed

        yield from sorted(awake, key=rank)
