"""The scenario: memory for all models but one, requests to all of them, and what must hold throughout."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx

from host_limits.host_memory import host_total_bytes
from tests.berth_process import ROOT, BerthProcess, running_berth
from tests.fake_engine import command
from tests.soak.traffic import Traffic
from tests.soak.watch import EventWatch, MemoryWatch, below

_GIB = 1 << 30
_START_TIMEOUT_S = 120.0
_OPERATE_EVERY_S = 5.0
_ACT_TIMEOUT_S = 30.0
_ACTIONS = ("sleep?level=1", "sleep?level=2", "stop", "restart", "wake?wait=0", "start")
_SPARE_MEMORY = 0.7  # as a fraction of a model, beyond all but one
_PROMPTS_TO_FILL = 150
_FAULTS_IN_LOG = re.compile(
    r"^.*(?:stops with \d+ requests in flight|Traceback|the scaler failed|Error in Berth).*$", re.MULTILINE
)


class Engine(StrEnum):
    """What runs the models."""

    REAL = "engine"  # the embedded engine, with the demo model
    FAKE = "fake"  # starts quickly and can't sleep: many more swaps


@dataclass(frozen=True, slots=True)
class Plan:
    """One soak. `num_models - 1` models fit in memory."""

    engine: Engine
    seconds: float
    num_clients: int = 16
    num_models: int = 3
    seed: int = 0
    calibration_s: float = 6.0
    store: str = "sqlite"  # or redis; for a storm
    pace: float | None = None  # interval factor of a storm's faults: 0.5 = twice as many; None = by engine
    budget_mib: int | None = None  # None = measured first

    @property
    def models(self) -> list[str]:
        return [f"model-{number}" for number in range(self.num_models)]


@dataclass(frozen=True, slots=True)
class Run:
    """All observations."""

    plan: Plan
    budget_bytes: int
    traffic: Traffic
    events: EventWatch
    memory: MemoryWatch
    faults_in_log: Sequence[str]
    ends_clean: bool


def catalog(plan: Plan) -> dict[str, Any]:
    """The models differ in what happens after their idle timeout."""
    if plan.engine is Engine.FAKE:
        return {
            name: {"command": command("--served-model-name", name, "--ballast-mb", "200"), "timeout": 2}
            for name in plan.models
        }
    actions = ("stop", "sleep1", "sleep2")
    return {
        name: {
            "path": str(ROOT / "models" / "berth-demo"),
            # A cache about as large as everything else, so that sleep frees half of the memory.
            "params": {"kv_cache_memory_bytes": "250M", "num_threads": 1},
            "timeout": 4,
            "expire_action": actions[number % len(actions)],
        }
        for number, name in enumerate(plan.models)
    }


def run(plan: Plan, directory: Path, report: Callable[[str], None]) -> Run:
    """Measure the models' memory, then soak. Raises AssertionError if Berth doesn't start."""
    models = catalog(plan)
    write_catalog(directory, {name: {**entry, "timeout": 0} for name, entry in models.items()})
    budget = find_budget(plan, directory)
    write_catalog(directory, models)
    report(f"budget {budget / _GIB:.2f} GiB, {plan.num_models} models, {plan.seconds:.0f} s")
    settings = settings_for(plan, budget)
    traffic = Traffic("", plan.models, plan.num_clients, plan.seed)
    events = EventWatch()
    ends_clean = False
    try:
        with _berth(directory, settings) as berth:
            traffic.base_url = berth.url
            memory = MemoryWatch(below(berth.pid), budget)
            with memory.running():
                asyncio.run(_soak(plan, berth, traffic, events))
        ends_clean = True
    except AssertionError as error:  # it did not end, or left something behind
        events.problems.append(f"Berth did not end well: {str(error)[-2000:]}")
    log = (directory / "berth.log").read_text(errors="replace")
    faults = [match[0] for match in _FAULTS_IN_LOG.finditer(log)]
    return Run(plan, budget, traffic, events, memory, faults, ends_clean)


def settings_for(plan: Plan, budget: int) -> dict[str, str]:
    """Memory for all models but one, and short times, so that much happens."""
    residency, max_wait = ("0.3", "2") if plan.engine is Engine.FAKE else ("3", "8")
    return {
        "HOST_MEMORY": repr(budget / _GIB if budget > _GIB else budget / host_total_bytes()),
        "MIN_RESIDENCY": residency,
        "MAX_WAIT": max_wait,
        "MAX_QUEUE": str(plan.num_clients),
    }


def write_catalog(directory: Path, models: Mapping[str, Any]) -> None:
    (directory / "models.yaml").write_text(json.dumps({"models": models}))  # JSON is YAML


@contextmanager
def _berth(directory: Path, settings: Mapping[str, str]) -> Iterator[BerthProcess]:
    common = {"MODELS_FILE": str(directory / "models.yaml"), "STATE_DIR": str(directory / "state")}
    with running_berth(directory, **common, **settings) as berth:
        yield berth


def find_budget(plan: Plan, directory: Path) -> int:
    """Enough memory for all models but one under load, and for part of another, which may sleep.

    Berth knows nothing about a command before its first run, so all run once; for the embedded engine, the
    last model is left to Berth's estimate.
    """
    with _berth(directory, {}) as berth:
        memory = MemoryWatch(below(berth.pid), interval_s=0.1)
        traffic = Traffic(berth.url, plan.models[:-1], plan.num_clients, plan.seed)
        with berth.client(_START_TIMEOUT_S) as http:
            if plan.engine is Engine.FAKE:
                _start(http, plan.models[-1])
                _wait_until_measured(http, plan.models[-1])
                http.post(f"/models/{plan.models[-1]}/stop").raise_for_status()
            for name in plan.models[:-1]:
                _start(http, name)
            with memory.running():
                if plan.engine is Engine.REAL:  # its cache takes memory only when filled
                    asyncio.run(traffic.fill(_PROMPTS_TO_FILL))
                asyncio.run(traffic.run(plan.calibration_s))
    num_resident = plan.num_models - 1
    return int(memory.peak_bytes * (num_resident + _SPARE_MEMORY) / num_resident)


def _start(http: httpx.Client, name: str) -> None:
    response = http.post(f"/models/{name}/start", params={"wait": _START_TIMEOUT_S})
    assert response.json().get("state") == "running", response.text


def _wait_until_measured(http: httpx.Client, name: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not http.get(f"/models/{name}").json()["memory_bytes"]:
        assert time.monotonic() < deadline, f"{name} was never measured"
        time.sleep(0.05)


async def _soak(plan: Plan, berth: BerthProcess, traffic: Traffic, events: EventWatch) -> None:
    async with berth.async_client() as http:
        following = asyncio.create_task(events.follow(http))
        await events.connected.wait()
        jobs = [following, asyncio.create_task(_operate(http, plan, events.problems))]
        try:
            await traffic.run(plan.seconds)
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.wait(jobs)
        for job in jobs:
            if not job.cancelled() and (error := job.exception()) is not None:
                events.problems.append(f"watching failed: {error!r}")


async def _operate(http: httpx.AsyncClient, plan: Plan, problems: list[str]) -> None:
    """An operator puts models to sleep, stops and restarts them meanwhile."""
    rng = random.Random(plan.seed)
    actions = (
        _ACTIONS
        if plan.engine is Engine.REAL
        else [action for action in _ACTIONS if not action.startswith("sleep")]
    )
    while True:
        await asyncio.sleep(min(_OPERATE_EVERY_S, plan.seconds / 5) * rng.uniform(0.2, 1.8))
        url = f"/models/{rng.choice(plan.models)}/{rng.choice(actions)}"
        with suppress(httpx.TimeoutException):
            response = await http.post(url, timeout=_ACT_TIMEOUT_S)
            if response.status_code not in (200, 409):  # 409: a stopped model can't sleep
                problems.append(f"POST {url}: {response.status_code} {response.text[:500]}")
