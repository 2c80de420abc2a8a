"""An operator's actions during the storm: delete, stop, sleep, wake, restart, reload."""

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
from tests.soak.faults import Action, FaultContext
from tests.soak.history import Impact

GUEST = "guest"  # a model that is added to and removed from the catalog
_ORDER_TIMEOUT_S = 120.0
_HARM_LASTS_S = 90.0  # as long as the longest back-off after a crash
_RETRY_LATER = {502, 503}
_ASLEEP = ("sleep?level=1", "sleep?level=2")
_ACTIONS = ("stop", "restart", "wake?wait=0", "start")


class Catalog:
    """models.yaml, changed while Berth follows it."""

    def __init__(self, path: Path, models: Mapping[str, Any]) -> None:
        self._path = path
        self._models = {name: dict(entry) for name, entry in models.items()}

    def write(self, models: Mapping[str, Any] | None = None) -> None:
        """Replace the file atomically, as editors do."""
        self.write_text(json.dumps({"models": self._models if models is None else models}))  # JSON is YAML

    def write_text(self, text: str) -> None:
        draft = self._path.with_suffix(".new")
        draft.write_text(text)
        draft.replace(self._path)

    def change(self, rng: random.Random) -> None:
        """Change a timeout and an alias; add or remove the guest."""
        models = {name: dict(entry) for name, entry in self._models.items()}
        for name, entry in models.items():
            entry["timeout"] = rng.choice((entry["timeout"], 3, 6))
            entry["aliases"] = [f"{name}-{rng.randrange(3)}"]
        if rng.random() < 0.5:
            models[GUEST] = {**next(iter(self._models.values())), "timeout": 2}
            if "command" in models[GUEST]:
                models[GUEST]["command"] = command("--served-model-name", GUEST, "--ballast-mb", "50")
        self.write(models)


class Operator:
    """A refusal that no fault explains is a problem."""

    def __init__(self, context: FaultContext, catalog: Catalog, *, can_sleep: bool) -> None:
        self._context = context
        self._catalog = catalog
        self._model_actions = (*_ACTIONS, *_ASLEEP) if can_sleep else _ACTIONS
        self._num_temporary = 0

    @property
    def actions(self) -> tuple[Action, ...]:
        return (
            self._on_model,
            self._on_model,
            self._delete,
            self._force,
            self._reload,
            self._use_temporary_instance,
        )

    async def _on_model(self, context: FaultContext, rng: random.Random) -> None:
        model, action = rng.choice(context.models), rng.choice(self._model_actions)
        with context.history.during(action.partition("?")[0], model=model):
            await self._order("POST", f"/models/{model}/{action}", {200, 409}, model)  # 409: it doesn't run

    async def _delete(self, context: FaultContext, rng: random.Random) -> None:
        if found := await self._instance(rng):
            with context.history.during("delete", model=found[1]):
                await self._order("DELETE", f"/instances/{found[0]}", {204, 404}, found[1])

    async def _force(self, context: FaultContext, rng: random.Random) -> None:
        """Delete or stop by force, which cuts requests in flight."""
        if found := await self._instance(rng):
            action = rng.choice(("delete", "stop"))
            with context.history.during(f"{action} by force", Impact.ENGINE, found[1]):
                path = f"/instances/{found[0]}"
                method, path = ("DELETE", path) if action == "delete" else ("POST", f"{path}/stop")
                await self._order(method, f"{path}?force=true", {200, 204, 404}, found[1])

    async def _reload(self, context: FaultContext, rng: random.Random) -> None:
        """Reload a changed catalog; sometimes an invalid one first, which must be refused.

        Berth isn't restarted meanwhile: with an invalid catalog it refuses to start.
        """
        with context.history.during("reload"):
            if rng.random() < 0.25:
                async with context.deployment.no_restart:
                    self._catalog.write_text("models: [what, is, this")
                    await self._order("POST", "/reload", {422})
                    self._catalog.change(rng)
            else:
                self._catalog.change(rng)
            await self._order("POST", "/reload", {200})

    async def _use_temporary_instance(self, context: FaultContext, rng: random.Random) -> None:
        """Create, use and delete an instance outside the catalog. Each step may meet a fault."""
        self._num_temporary += 1
        name = f"temporary-{self._num_temporary}"
        body = {"name": name, "model_name": name, "engine": "command", "command": command(), "timeout": 0}
        with context.history.during("instance created and deleted", model=name):
            key = {"Idempotency-Key": name}
            await self._order("POST", "/instances?wait=60", {201, 409, 503}, name, json=body, headers=key)
            request = {"model": name, "prompt": "x", "max_tokens": 3}
            await self._order("POST", f"/proxy/{name}/v1/completions", {200, 404, 409}, name, json=request)
            await self._delete_until_gone(name)

    async def _delete_until_gone(self, name: str) -> None:
        until = time.monotonic() + _ORDER_TIMEOUT_S
        while time.monotonic() < until:
            answer = await self._order("DELETE", f"/instances/{name}", {204, 404}, name)
            if answer is not None and answer.status_code in (204, 404):
                return
            await asyncio.sleep(0.5)
        self._context.history.problems.append(f"{name} can't be deleted")

    async def restart_failed(self) -> None:
        """Start failed models again, as an operator would."""
        await self._context.refresh()
        for model in self._context.models:
            answer = await self._order("GET", f"/models/{model}", {200}, model)
            if answer is not None and answer.status_code == 200 and answer.json()["error"] is not None:
                await self._order("POST", f"/models/{model}/start", {200}, model)

    async def _instance(self, rng: random.Random) -> tuple[str, str] | None:
        """The id and model of an existing instance."""
        answer = await self._order("GET", "/instances", {200})
        if answer is None or answer.status_code != 200:
            return None
        found = [(one["instance_id"], one["profile"]) for one in answer.json()["data"] if one["profile"]]
        return rng.choice(sorted(found)) if found else None

    async def _order(
        self, method: str, path: str, allowed: set[int], model: str | None = None, **fields: Any
    ) -> httpx.Response | None:
        """The response; None if Berth was down meanwhile."""
        context, began = self._context, time.monotonic()
        try:
            answer = await context.http.request(method, path, timeout=_ORDER_TIMEOUT_S, **fields)
        except httpx.HTTPError as error:
            if not context.history.is_berth_away(began, time.monotonic()):
                context.history.problems.append(f"{method} {path}: {error!r}")
            return None
        if answer.status_code not in allowed and not self._may_fail(answer, began, model):
            context.history.problems.append(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer

    def _may_fail(self, answer: httpx.Response, began: float, model: str | None) -> bool:
        """Whether a known fault explains a status that asks for a retry."""
        history, now = self._context.history, time.monotonic()
        return answer.status_code in _RETRY_LATER and (
            history.is_berth_away(began, now)
            or history.has(Impact.STORE, began, now, after_s=10.0)
            or history.has(Impact.ENGINE, began, now, after_s=_HARM_LASTS_S, model=model)
        )
