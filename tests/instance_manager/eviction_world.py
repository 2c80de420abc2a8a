"""A world of memory, time and requests alone, whose engines start, sleep and stop as the policy says.

Everything in it is simulated, by a clock of its own. It acts serially, plans again after each act, and checks
at each moment what must never happen.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from instance_manager.memory.devices import HOST, SLOT, Device
from instance_manager.memory.eviction import Evict, EvictionPolicy, Fits, NeverFits, Wait, plan_capacity
from instance_manager.memory.start_order import WaitingModel, next_to_start
from instance_manager.memory.victims import EvictionAction, EvictionStep, Resident

GPU = "GPU-0"
ACT_S = {"start": 3.0, "wake": 0.5, "evict": 1.0}  # how long acts take
AWAKE, STOPPED = 0, int(EvictionAction.STOP)


@dataclass(frozen=True)
class Model:
    name: str
    weights: int
    kv_cache: int
    on_gpu: bool
    can_sleep: bool
    is_pinned: bool = False  # and awake from the beginning

    def held_at(self, level: int) -> Mapping[Device, int]:
        return {} if level == STOPPED else {**self._memory_at(level), SLOT: 1}

    def _memory_at(self, level: int) -> Mapping[Device, int]:
        weights, kv_cache = self.weights * (level < 2), self.kv_cache * (level < 1)
        if not self.on_gpu:
            return {HOST: 1 + weights + kv_cache}
        return {HOST: 1 + weights * (level == 1), GPU: 1 + weights + kv_cache if level == 0 else 1}


@dataclass
class Request:
    model: str
    at: float
    service_s: float
    waited_s: float | None = None


@dataclass
class Engine:
    model: Model
    level: int = STOPPED
    is_ready: bool = False
    is_gate_open: bool = True
    in_flight: int = 0
    queue: list[Request] = field(default_factory=list)
    resident_since: float = 0.0
    last_used: float = 0.0


class World:
    """`run` plays all requests to their end."""

    def __init__(
        self, models: Sequence[Model], budgets: Mapping[Device, int], policy: EvictionPolicy
    ) -> None:
        self.engines = {model.name: Engine(model) for model in models}
        self.budgets = {SLOT: len(models), **budgets}
        self.policy = policy
        self.now = 0.0
        self.refused: dict[str, str] = {}  # model -> why it never fits
        self.evictions: list[tuple[float, str, EvictionAction]] = []
        self.num_starts = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._steps: list[EvictionStep] = []
        self._is_acting = False
        for engine in self.engines.values():
            if engine.model.is_pinned:
                engine.level, engine.is_ready = AWAKE, True

    def run(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._at(request.at, partial(self._arrive, request))
        for _ in range(200 * (len(requests) + 1)):
            if not self._events:
                return
            self.now, _, happen = heapq.heappop(self._events)
            happen()
            self._settle()
        raise AssertionError(f"no end in sight after {self.now} s")

    def _at(self, time: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), happen))

    def _arrive(self, request: Request) -> None:
        if request.model not in self.refused:
            self.engines[request.model].queue.append(request)

    def _settle(self) -> None:
        for engine in self.engines.values():
            while engine.is_ready and engine.is_gate_open and engine.queue:
                self._serve(engine, engine.queue.pop(0))
        if not self._is_acting:
            self._act()
        self.check_memory()

    def _serve(self, engine: Engine, request: Request) -> None:
        request.waited_s = self.now - request.at
        engine.in_flight += 1
        engine.last_used = self.now

        def end() -> None:
            engine.in_flight -= 1
            engine.last_used = self.now

        self._at(self.now + request.service_s, end)

    def _act(self) -> None:
        while self._steps:
            step = self._steps[0]
            engine = self.engines[step.instance_id]
            if not step.still_applies(self._resident(engine)):
                self._steps.clear()  # it has got a request since: plan again
                break
            engine.is_gate_open = False
            if engine.in_flight:
                return  # until its leases end
            self._evict(engine, self._steps.pop(0))
            return
        name = self._next()
        if name is not None:
            self._make_room(self.engines[name])

    def _next(self) -> str | None:
        return next_to_start(
            [
                WaitingModel(name, engine.queue[0].at, queued=len(engine.queue))
                for name, engine in self.engines.items()
                if engine.queue and engine.level != AWAKE
            ]
        )

    def _make_room(self, engine: Engine) -> None:
        held = engine.model.held_at(engine.level)
        need = {d: max(n - held.get(d, 0), 0) for d, n in engine.model.held_at(AWAKE).items()}
        since = engine.queue[0].at
        residents = [self._resident(e) for e in self.engines.values() if e.level != STOPPED]
        plan = plan_capacity(need, engine.model.name, since, residents, self.budgets, self.now, self.policy)
        match plan:
            case Fits():
                self._start(engine)
            case Evict(steps):
                for step in steps:
                    self._check_step(step, since)
                self._steps = list(steps)
                self._act()
            case Wait(until, reason):
                assert reason
                assert until is not None
                assert until > self.now
                self._at(until, lambda: None)
            case NeverFits(message):
                self.refused[engine.model.name] = message
                engine.queue.clear()
                self._at(self.now, lambda: None)

    def _resident(self, engine: Engine) -> Resident:
        model = engine.model
        return Resident(
            instance_id=model.name,
            model_name=model.name,
            level=engine.level,
            held=model.held_at(engine.level),
            held_asleep={level: model.held_at(level) for level in (1, 2)} if model.can_sleep else {},
            in_flight=engine.in_flight,
            queued=len(engine.queue),
            pinned=model.is_pinned,
            last_used=engine.last_used,
            resident_since=engine.resident_since,
        )

    def _start(self, engine: Engine) -> None:
        took_s = ACT_S["start" if engine.level == STOPPED else "wake"]
        engine.level = AWAKE
        engine.resident_since = engine.last_used = self.now + took_s
        self.num_starts += 1
        self._is_acting = True

        def ready() -> None:
            self._is_acting = False
            engine.is_ready = True

        self._at(self.now + took_s, ready)

    def _evict(self, engine: Engine, step: EvictionStep) -> None:
        assert engine.in_flight == 0, f"{engine.model.name} has leases"
        self.evictions.append((self.now, engine.model.name, step.action))
        before = engine.level
        engine.is_ready = False
        engine.level = int(step.action)  # what is moved to the host is there before the GPU is free:
        self.check_memory({engine.model.name: before})
        self._is_acting = True

        def done() -> None:
            self._is_acting = False
            engine.is_gate_open = True

        self._at(self.now + ACT_S["evict"], done)

    def check_memory(self, before: Mapping[str, int] | None = None) -> None:
        """Never over budget. `before`: levels of engines being evicted, which hold the more of both."""
        used: dict[Device, int] = {}
        for name, engine in self.engines.items():
            held, held_before = (
                engine.model.held_at(engine.level),
                engine.model.held_at((before or {}).get(name, engine.level)),
            )
            for device in held.keys() | held_before.keys():
                most = max(held.get(device, 0), held_before.get(device, 0))
                used[device] = used.get(device, 0) + most
        for device, num_bytes in used.items():
            assert num_bytes <= self.budgets[device], f"{device}: {num_bytes} at {self.now} s"

    def _check_step(self, step: EvictionStep, since: float) -> None:
        victim = self.engines[step.instance_id]
        assert not victim.model.is_pinned
        assert step.must_drain or not (victim.in_flight or victim.queue)
        assert step.must_drain == (self.now >= since + self.policy.max_wait_s)
        if victim.level == AWAKE:
            assert self.now >= victim.resident_since + self.policy.min_residency_s
        assert step.action > victim.level
        assert victim.model.can_sleep or step.action is EvictionAction.STOP
