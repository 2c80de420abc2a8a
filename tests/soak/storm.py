"""The storm: the soak's traffic, while all under it is killed, ended, deleted, reloaded at random."""

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
from tests.soak import leaks as leftovers
from tests.soak.accounting import Accounts, settle, wrong_counts
from tests.soak.requests import Ask
from tests.soak.faults import ON_BERTH, ON_ENGINES, ON_REDIS, Act, Weather
from tests.soak.history import Harm, History
from tests.soak.operator_actions import GUEST, Catalog, Orders
from tests.soak.deployment import Place
from tests.soak.scenario import Engine, Plan, catalog, find_budget, settings_for, write_catalog
from tests.soak.client import Outcome, send
from tests.soak.traffic import Traffic
from tests.soak.watch import EventWatch, MemoryWatch

_ATTEMPT_S = 120.0
_NUM_RETRIES = 30
_ENGINES_EVERY_S = (0.5, 3.0)
_ORDERS_EVERY_S = (0.2, 2.0)
_BERTH_EVERY_S = (4.0, 20.0)
_REDIS_EVERY_S = (2.0, 12.0)
_MEND_EVERY_S = 1.0
_PACE_OF_REAL_ENGINES = 4.0  # they take seconds to start: faults are so many times rarer
_CALM_PART = 0.15  # of the time, at its end, in which Berth lives on: what it leaks adds up
_NOTICED_WITHIN_S = 20.0  # that an engine was killed; by the next Berth, when that is there
_CALM_AGAIN_S = 120.0
_CALM_AGAIN_TOKENS = 8
_FAULTS_IN_LOG = re.compile(
    r"^.*(?:Traceback|never retrieved|the scaler failed|Error in Berth|an error in Berth|never awaited"
    r"|another Berth process uses).*$",
    re.MULTILINE,
)


@dataclass(slots=True)
class Storm:
    """All that was seen. `left`: what is left over, in words."""

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


def run_storm(plan: Plan, folder: Path, tell: Callable[[str], None]) -> Storm:
    """Measure what models need, then let it begin. Raises AssertionError where Berth doesn't even start."""
    models = catalog(plan)
    write_catalog(folder, {name: {**entry, "timeout": 0} for name, entry in models.items()})
    budget = plan.budget_mib << 20 if plan.budget_mib else find_budget(plan, folder)
    write_catalog(folder, models)
    tell(
        f"seed {plan.seed}, store {plan.store}, engine {plan.engine}, {plan.seconds:.0f} s, "
        f"{plan.num_models} models, budget {budget >> 20} MiB"
    )
    keys = [secrets.token_hex(16) for _ in range(plan.num_clients + 1)]
    redis = _redis(folder) if plan.store == "redis" else None
    settings = {
        **settings_for(plan, budget),
        "MODELS_FILE": str(folder / "models.yaml"),
        "MODEL_DIRS": str(folder / "no-models"),
        "API_KEYS": ",".join(keys[1:]),
        "ADMIN_API_KEYS": keys[0],
        **({"STATE_URL": redis.url} if redis else {}),
    }
    place_folder = folder / "storm"
    place_folder.mkdir()
    history = History()
    place = Place(place_folder, settings, history, redis)
    traffic = Traffic("", plan.models, plan.num_clients, plan.seed, keys=keys[1:], guest=GUEST)
    traffic.num_retries, traffic.timeout_s, traffic.base_url = _NUM_RETRIES, _ATTEMPT_S, place.url
    memory = MemoryWatch(place.processes, budget, interval_s=0.5)
    storm = Storm(plan, budget, traffic, history, EventWatch(is_stormy=True), memory)
    began = time.monotonic()
    try:
        _weather_it(storm, place, Catalog(folder / "models.yaml", models), keys[0])
    finally:
        place.close()
    storm.seconds = time.monotonic() - began
    storm.num_berths = len(place.all)
    return storm


def _redis(folder: Path) -> RedisProcess:
    (folder / "redis").mkdir()
    redis = RedisProcess(folder / "redis", keep=True)
    redis.start()
    return redis


def _weather_it(storm: Storm, place: Place, files: Catalog, admin_key: str) -> None:
    place.begin()
    place.berth.wait_until_serving()
    plan = storm.plan
    header = {"Authorization": f"Bearer {admin_key}"}
    with httpx.Client(base_url=place.url, headers=header, trust_env=False, timeout=_ATTEMPT_S) as http:
        _answer_again(storm, place, admin_key)
        storm.left += leftovers.clear(http, plan.models)
        before = leftovers.open_descriptors(place.berth.pid)
        with storm.memory.running():
            asyncio.run(_blow(storm, place, files, header))
        storm.accounts = settle(storm.traffic.answers, storm.history)
    with httpx.Client(base_url=place.url, headers=header, trust_env=False, timeout=_ATTEMPT_S) as http:
        for model in plan.models:
            http.post(f"/models/{model}/start")  # it may have failed in the end
        _answer_again(storm, place, admin_key)
        storm.left += leftovers.at_rest(http, place)
        usage = http.get("/usage").json()["data"]
        answers = storm.traffic.answers
        storm.wrong_usage = wrong_counts(answers, storm.traffic.keys, usage, storm.history)
        storm.left += leftovers.clear(http, plan.models)
    storm.left += leftovers.descriptors(place.berth.pid, before)
    place.berth.terminate()
    status = place.berth.wait()
    storm.left += [] if status == 0 else [f"exit status {status}: {place.log_tail()}"]
    storm.left += leftovers.after_all(place)
    storm.in_log = [match[0] for match in _FAULTS_IN_LOG.finditer(place.logs())]


def _answer_again(storm: Storm, place: Place, key: str) -> None:
    """Each model answers, when all is calm."""
    for model in storm.plan.models:
        answer = asyncio.run(_ask_once(place.url, key, model))
        if answer:
            storm.left.append(f"{model} does not answer when all is calm: {answer}")


async def _ask_once(url: str, key: str, model: str) -> str:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=_CALM_AGAIN_S) as http:
        answer = await send(http, Ask(model, False, True, _CALM_AGAIN_TOKENS, "x"), key, _CALM_AGAIN_S)
    return "" if answer.outcome is Outcome.ANSWERED else answer.problem


async def _blow(storm: Storm, place: Place, files: Catalog, header: dict[str, str]) -> None:
    plan, stop = storm.plan, asyncio.Event()
    async with httpx.AsyncClient(base_url=place.url, headers=header, trust_env=False, timeout=10) as http:
        weather = Weather(place, http, plan.models)
        storm.model_of = weather.model_of
        orders = Orders(weather, files, can_sleep=plan.engine is Engine.REAL)
        watching = [
            asyncio.create_task(place.look_after()),
            asyncio.create_task(storm.events.follow_on(http, place.history)),
        ]
        jobs = [
            asyncio.create_task(_go_on(weather, acts, every_s, f"{plan.seed} {number}", until, stop))
            for number, (acts, every_s, until) in enumerate(_loops(plan, orders, place))
        ]
        jobs.append(asyncio.create_task(_mend(orders, stop)))
        try:
            await storm.traffic.run(plan.seconds)
        finally:
            stop.set()
            files.write()
            results = await asyncio.gather(*jobs, return_exceptions=True)
            for task in watching:
                task.cancel()
            results += await asyncio.gather(*watching, return_exceptions=True)
        errors = [one for one in results if isinstance(one, Exception)]
        storm.history.problems += [f"the storm itself has failed: {error!r}" for error in errors]


def _loops(
    plan: Plan, orders: Orders, place: Place
) -> Sequence[tuple[tuple[Act, ...], tuple[float, float], float]]:
    """What happens, every how many seconds, and until when (monotonic seconds)."""
    end = time.monotonic() + plan.seconds
    stormy_end = end - _CALM_PART * plan.seconds
    loops = [
        (ON_ENGINES, _ENGINES_EVERY_S, end),
        (orders.acts, _ORDERS_EVERY_S, end),
        (ON_BERTH, _BERTH_EVERY_S, stormy_end),
        *([(ON_REDIS, _REDIS_EVERY_S, stormy_end)] if place.redis is not None else []),
    ]
    pace = plan.pace or (_PACE_OF_REAL_ENGINES if plan.engine is Engine.REAL else 1.0)
    return [(acts, (least * pace, most * pace), until) for acts, (least, most), until in loops]


async def _go_on(
    weather: Weather,
    acts: Sequence[Act],
    every_s: tuple[float, float],
    seed: str,
    until: float,
    stop: asyncio.Event,
) -> None:
    """One act after the other. Each has dice of its own, so that a seed means the same acts each time."""
    number = 0
    while not stop.is_set():
        number += 1
        dice = random.Random(f"{seed} {number}")
        await _pause(stop, dice.uniform(*every_s))
        if time.monotonic() >= until or stop.is_set():
            return
        act: Callable[[Weather, random.Random], Awaitable[None]] = dice.choice(acts)
        await act(weather, dice)


async def _mend(orders: Orders, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await _pause(stop, _MEND_EVERY_S)
        await orders.mend()


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


def failed_events_without_cause(storm: Storm) -> list[str]:
    """Engines that failed although nothing had been done to them."""
    return [
        f"an engine failed of nothing: {data}"
        for at, instance, data in storm.events.failures
        if not any(
            storm.history.has(harm, at, at, after_s=_NOTICED_WITHIN_S, model=storm.model_of.get(instance))
            for harm in (Harm.ENGINE, Harm.KILL, Harm.END)
        )
    ]
