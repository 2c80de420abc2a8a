"""What operators order in the middle of it all: delete, stop, sleep, wake, restart, reload."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.fake_engine import command
from tests.soak.faults import Act, Weather
from tests.soak.history import Harm

GUEST = "guest"  # a model that comes and goes with the catalog
_ORDER_TIMEOUT_S = 120.0
_HARM_LASTS_S = 330.0  # as long as the longest back-off after a crash
_RETRY_LATER = {502, 503}
_ASLEEP = ("sleep?level=1", "sleep?level=2")
_ACTS = ("stop", "restart", "wake?wait=0", "start")


class Catalog:
    """models.yaml, changed while Berth follows it."""

    def __init__(self, path: Path, models: Mapping[str, Any]) -> None:
        self._path = path
        self._models = {name: dict(entry) for name, entry in models.items()}

    def write(self, models: Mapping[str, Any] | None = None) -> None:
        """At once or not at all, as editors do."""
        self.write_text(json.dumps({"models": self._models if models is None else models}))  # JSON is YAML

    def write_text(self, text: str) -> None:
        beside = self._path.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self._path)

    def change(self, dice: random.Random) -> None:
        """Another time-out, another name; the guest comes or goes."""
        models = {name: dict(entry) for name, entry in self._models.items()}
        for name, entry in models.items():
            entry["timeout"] = dice.choice((entry["timeout"], 3, 6))
            entry["aliases"] = [f"{name}-{dice.randrange(3)}"]
        if dice.random() < 0.5:
            models[GUEST] = {**next(iter(self._models.values())), "timeout": 2}
            if "command" in models[GUEST]:
                models[GUEST]["command"] = command("--served-model-name", GUEST, "--ballast-mb", "50")
        self.write(models)


class Orders:
    """An operator's acts. What is refused without a reason is a problem."""

    def __init__(self, weather: Weather, catalog: Catalog, *, can_sleep: bool) -> None:
        self._weather = weather
        self._catalog = catalog
        self._model_acts = (*_ACTS, *_ASLEEP) if can_sleep else _ACTS
        self._num_visitors = 0

    @property
    def acts(self) -> tuple[Act, ...]:
        return (self._on_model, self._on_model, self._delete, self._force, self._reload, self._visit)

    async def _on_model(self, weather: Weather, dice: random.Random) -> None:
        model, act = dice.choice(weather.models), dice.choice(self._model_acts)
        with weather.history.during(act.partition("?")[0], model=model):
            await self._order("POST", f"/models/{model}/{act}", {200, 409}, model)  # 409: it doesn't run

    async def _delete(self, weather: Weather, dice: random.Random) -> None:
        if one := await self._instance(dice):
            with weather.history.during("delete", model=one[1]):
                await self._order("DELETE", f"/instances/{one[0]}", {204, 404}, one[1])

    async def _force(self, weather: Weather, dice: random.Random) -> None:
        """Its requests in flight are cut."""
        if one := await self._instance(dice):
            act = dice.choice(("delete", "stop"))
            with weather.history.during(f"{act} by force", Harm.ENGINE, one[1]):
                path = f"/instances/{one[0]}"
                method, path = ("DELETE", path) if act == "delete" else ("POST", f"{path}/stop")
                await self._order(method, f"{path}?force=true", {200, 204, 404}, one[1])

    async def _reload(self, weather: Weather, dice: random.Random) -> None:
        """Now and then with a catalog that can't be read; then the old one holds."""
        with weather.history.during("reload"):
            if dice.random() < 0.25:
                self._catalog.write_text("models: [what, is, this")
                await self._order("POST", "/reload", {422})
            self._catalog.change(dice)
            await self._order("POST", "/reload", {200})

    async def _visit(self, weather: Weather, dice: random.Random) -> None:
        """An instance outside the catalog comes, answers, and goes. Each step may meet a fault."""
        self._num_visitors += 1
        name = f"visitor-{self._num_visitors}"
        body = {"name": name, "model_name": name, "engine": "command", "command": command(), "timeout": 0}
        with weather.history.during("instance made and deleted", model=name):
            key = {"Idempotency-Key": name}
            await self._order("POST", "/instances?wait=60", {201, 409, 503}, name, json=body, headers=key)
            ask = {"model": name, "prompt": "x", "max_tokens": 3}
            await self._order("POST", f"/proxy/{name}/v1/completions", {200, 404, 409}, name, json=ask)
            await self._until_gone(name)

    async def _until_gone(self, name: str) -> None:
        until = time.monotonic() + _ORDER_TIMEOUT_S
        while time.monotonic() < until:
            answer = await self._order("DELETE", f"/instances/{name}", {204, 404}, name)
            if answer is not None and answer.status_code in (204, 404):
                return
            await asyncio.sleep(0.5)
        self._weather.history.problems.append(f"{name} can't be deleted")

    async def mend(self) -> None:
        """What has failed is started again, as whoever is on duty would."""
        await self._weather.look()
        for model in self._weather.models:
            answer = await self._order("GET", f"/models/{model}", {200}, model)
            if answer is not None and answer.status_code == 200 and answer.json()["error"] is not None:
                await self._order("POST", f"/models/{model}/start", {200}, model)

    async def _instance(self, dice: random.Random) -> tuple[str, str] | None:
        """The id of one that is there, and its model."""
        answer = await self._order("GET", "/instances", {200})
        if answer is None or answer.status_code != 200:
            return None
        found = [(one["instance_id"], one["profile"]) for one in answer.json()["data"] if one["profile"]]
        return dice.choice(sorted(found)) if found else None

    async def _order(
        self, method: str, path: str, allowed: set[int], model: str | None = None, **fields: Any
    ) -> httpx.Response | None:
        """None where Berth was away meanwhile."""
        weather, began = self._weather, time.monotonic()
        try:
            answer = await weather.http.request(method, path, timeout=_ORDER_TIMEOUT_S, **fields)
        except httpx.HTTPError as error:
            if not weather.history.is_berth_away(began, time.monotonic()):
                weather.history.problems.append(f"{method} {path}: {error!r}")
            return None
        if answer.status_code not in allowed and not self._may_fail(answer, began, model):
            weather.history.problems.append(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer

    def _may_fail(self, answer: httpx.Response, began: float, model: str | None) -> bool:
        """Whether something was wrong that it can be told to come again for."""
        history, now = self._weather.history, time.monotonic()
        return answer.status_code in _RETRY_LATER and (
            history.is_berth_away(began, now)
            or history.has(Harm.STORE, began, now, after_s=10.0)
            or history.has(Harm.ENGINE, began, now, after_s=_HARM_LASTS_S, model=model)
        )
