"""The storm: the soak's traffic while components are killed, ended, deleted and reloaded at random."""

from __future__ import annotations

import asyncio
import random
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.instance_manager.stores.redis_process import RedisProcess
from tests.soak import leaks
from tests.soak.accounting import Accounts, settle, wrong_counts
from tests.soak.client import Outcome, send
from tests.soak.deployment import Deployment
from tests.soak.faults import ON_BERTH, ON_ENGINES, ON_REDIS, Action, FaultContext
from tests.soak.history import History, Impact
from tests.soak.operator_actions import GUEST, Catalog, Operator
from tests.soak.requests import Request
from tests.soak.scenario import Engine, Plan, catalog, find_budget, settings_for, write_catalog
from tests.soak.traffic import Traffic
from tests.soak.watch import EventWatch, MemoryWatch

_ATTEMPT_S = 120.0
_NUM_RETRIES = 30
_ENGINES_EVERY_S = (0.5, 3.0)
_ORDERS_EVERY_S = (0.2, 2.0)
_BERTH_EVERY_S = (4.0, 20.0)
_REDIS_EVERY_S = (2.0, 12.0)
_RESTART_FAILED_EVERY_S = 1.0
_PACE_OF_REAL_ENGINES = 4.0  # they take seconds to start, so faults are rarer
_CALM_FRACTION = 0.15  # of the time, at the end, without faults to Berth, so that leaks accumulate
_NOTICED_WITHIN_S = 20.0  # after the kill of an engine, or after the next Berth serves
_CALM_TIMEOUT_S = 120.0
_CALM_TOKENS = 8
_FAULTS_IN_LOG = re.compile(
    r"^.*(?:Traceback|never retrieved|the scaler failed|Error in Berth|an error in Berth|never awaited"
    r"|another Berth process uses).*$",
    re.MULTILINE,
)


@dataclass(slots=True)
class Storm:
    """All observations. `left`: what was left over."""

    plan: Plan
    budget_bytes: int
    traffic: Traffic
    history: History
    events: EventWatch
    memory: MemoryWatch
    accounts: Accounts = field(default_factory=Accounts)
    left: list[str] = field(default_factory=list)
    wrong_usage: list[str] = field(default_factory=list)
    in_log: list[str] = field(default_factory=list)
    model_of: Mapping[str, str] = field(default_factory=dict)  # by instance
    num_berths: int = 0
    seconds: float = 0.0


def run_storm(plan: Plan, directory: Path, report: Callable[[str], None]) -> Storm:
    """Measure the models' memory, then run the storm. Raises AssertionError if Berth doesn't start."""
    models = catalog(plan)
    write_catalog(directory, {name: {**entry, "timeout": 0} for name, entry in models.items()})
    budget = plan.budget_mib << 20 if plan.budget_mib else find_budget(plan, directory)
    write_catalog(directory, models)
    report(
        f"seed {plan.seed}, store {plan.store}, engine {plan.engine}, {plan.seconds:.0f} s, "
        f"{plan.num_models} models, budget {budget >> 20} MiB"
    )
    keys = [secrets.token_hex(16) for _ in range(plan.num_clients + 1)]
    redis = _redis(directory) if plan.store == "redis" else None
    settings = {
        **settings_for(plan, budget),
        "MODELS_FILE": str(directory / "models.yaml"),
        "MODEL_DIRS": str(directory / "no-models"),
        "API_KEYS": ",".join(keys[1:]),
        "ADMIN_API_KEYS": keys[0],
        **({"STATE_URL": redis.url} if redis else {}),
    }
    storm_directory = directory / "storm"
    storm_directory.mkdir()
    history = History()
    deployment = Deployment(storm_directory, settings, history, redis)
    traffic = Traffic("", plan.models, plan.num_clients, plan.seed, keys=keys[1:], guest=GUEST)
    traffic.num_retries, traffic.timeout_s, traffic.base_url = _NUM_RETRIES, _ATTEMPT_S, deployment.url
    memory = MemoryWatch(deployment.processes, budget, interval_s=0.5)
    storm = Storm(plan, budget, traffic, history, EventWatch(is_stormy=True), memory)
    began = time.monotonic()
    try:
        _run_phases(storm, deployment, Catalog(directory / "models.yaml", models), keys[0])
    finally:
        deployment.close()
    storm.seconds = time.monotonic() - began
    storm.num_berths = len(deployment.berths)
    return storm


def _redis(directory: Path) -> RedisProcess:
    (directory / "redis").mkdir()
    redis = RedisProcess(directory / "redis", keep=True)
    redis.start()
    return redis


def _run_phases(storm: Storm, deployment: Deployment, files: Catalog, admin_key: str) -> None:
    deployment.start_berth()
    deployment.berth.wait_until_serving()
    plan = storm.plan
    header = {"Authorization": f"Bearer {admin_key}"}
    with httpx.Client(base_url=deployment.url, headers=header, trust_env=False, timeout=_ATTEMPT_S) as http:
        _check_models_answer(storm, deployment, admin_key)
        storm.left += leaks.delete_all(http, plan.models)
        before = leaks.open_descriptors(deployment.berth.pid)
        with storm.memory.running():
            asyncio.run(_run_under_faults(storm, deployment, files, header))
        storm.accounts = settle(storm.traffic.attempts, storm.history)
    with httpx.Client(base_url=deployment.url, headers=header, trust_env=False, timeout=_ATTEMPT_S) as http:
        for model in plan.models:
            http.post(f"/models/{model}/start")  # it may have failed
        _check_models_answer(storm, deployment, admin_key)
        storm.left += leaks.when_idle(http, deployment)
        usage = http.get("/usage").json()["data"]
        attempts = storm.traffic.attempts
        storm.wrong_usage = wrong_counts(attempts, storm.traffic.keys, usage, storm.history)
        storm.left += leaks.delete_all(http, plan.models)
    storm.left += leaks.descriptors(deployment.berth.pid, before)
    deployment.berth.terminate()
    status = deployment.berth.wait()
    storm.left += [] if status == 0 else [f"exit status {status}: {deployment.log_tail()}"]
    storm.left += leaks.after_end(deployment)
    storm.in_log = [match[0] for match in _FAULTS_IN_LOG.finditer(deployment.logs())]


def _check_models_answer(storm: Storm, deployment: Deployment, key: str) -> None:
    """Without faults, each model must answer."""
    for model in storm.plan.models:
        answer = asyncio.run(_ask_once(deployment.url, key, model))
        if answer:
            storm.left.append(f"{model} does not answer without faults: {answer}")


async def _ask_once(url: str, key: str, model: str) -> str:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=_CALM_TIMEOUT_S) as http:
        answer = await send(http, Request(model, False, True, _CALM_TOKENS, "x"), key, _CALM_TIMEOUT_S)
    return "" if answer.outcome is Outcome.ANSWERED else answer.problem


async def _run_under_faults(
    storm: Storm, deployment: Deployment, files: Catalog, header: dict[str, str]
) -> None:
    plan, stop = storm.plan, asyncio.Event()
    async with httpx.AsyncClient(
        base_url=deployment.url, headers=header, trust_env=False, timeout=10
    ) as http:
        context = FaultContext(deployment, http, plan.models)
        storm.model_of = context.model_of
        operator = Operator(context, files, can_sleep=plan.engine is Engine.REAL)
        watching = [
            asyncio.create_task(deployment.watch_and_restart()),
            asyncio.create_task(storm.events.follow_on(http, deployment.history)),
        ]
        jobs = [
            asyncio.create_task(_repeat(context, actions, every_s, f"{plan.seed} {number}", until, stop))
            for number, (actions, every_s, until) in enumerate(_loops(plan, operator, deployment))
        ]
        jobs.append(asyncio.create_task(_restart_failed(operator, stop)))
        try:
            await storm.traffic.run(plan.seconds)
        finally:
            stop.set()
            files.write()
            results = await asyncio.gather(*jobs, return_exceptions=True)
            for task in watching:
                task.cancel()
            results += await asyncio.gather(*watching, return_exceptions=True)
        errors = [result for result in results if isinstance(result, Exception)]
        storm.history.problems += [f"the storm itself failed: {error!r}" for error in errors]


def _loops(
    plan: Plan, operator: Operator, deployment: Deployment
) -> Sequence[tuple[tuple[Action, ...], tuple[float, float], float]]:
    """Actions, their interval in seconds, and until when (monotonic seconds)."""
    end = time.monotonic() + plan.seconds
    stormy_end = end - _CALM_FRACTION * plan.seconds
    loops = [
        (ON_ENGINES, _ENGINES_EVERY_S, end),
        (operator.actions, _ORDERS_EVERY_S, end),
        (ON_BERTH, _BERTH_EVERY_S, stormy_end),
        *([(ON_REDIS, _REDIS_EVERY_S, stormy_end)] if deployment.redis is not None else []),
    ]
    pace = plan.pace or (_PACE_OF_REAL_ENGINES if plan.engine is Engine.REAL else 1.0)
    return [(actions, (least * pace, most * pace), until) for actions, (least, most), until in loops]


async def _repeat(
    context: FaultContext,
    actions: Sequence[Action],
    every_s: tuple[float, float],
    seed: str,
    until: float,
    stop: asyncio.Event,
) -> None:
    """One action after the other, each with its own random numbers: a seed gives the same actions."""
    number = 0
    while not stop.is_set():
        number += 1
        rng = random.Random(f"{seed} {number}")
        await _pause(stop, rng.uniform(*every_s))
        if time.monotonic() >= until or stop.is_set():
            return
        action: Callable[[FaultContext, random.Random], Awaitable[None]] = rng.choice(actions)
        await action(context, rng)


async def _restart_failed(operator: Operator, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await _pause(stop, _RESTART_FAILED_EVERY_S)
        await operator.restart_failed()


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


def failed_events_without_cause(storm: Storm) -> list[str]:
    """Engines that failed without a fault."""
    return [
        f"an engine failed without a fault: {data}"
        for at, instance, data in storm.events.failures
        if not any(
            storm.history.has(impact, at, at, after_s=_NOTICED_WITHIN_S, model=storm.model_of.get(instance))
            for impact in (Impact.ENGINE, Impact.KILL, Impact.END)
        )
    ]
