"""What happens to models, in llama.cpp's words: for `GET /models/sse`.

Knows each model's last state, and tells changes only: to all listeners, filtered by what their keys may use.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from api.control.model_view import LoadState, exit_code_of, load_progress, openai_entry, state_of_replicas
from instance_manager.broadcast.ring import BroadcastRing
from instance_manager.errors import ManagerError
from instance_manager.fleet.facts_reader import FactsReader
from instance_manager.fleet.fleet import Fleet
from instance_manager.fleet.models import Model
from instance_manager.hub.process import Line
from instance_manager.hub.pull import Pulls
from instance_manager.types import Event

_CAPACITY = 1000
_PROGRESS_INTERVAL_S = 0.5
_STATUS = "model_status"
ALL = "*"  # in place of a model
_UNSETTLED = ("state", "problem")  # within the transition that is told


@dataclass(frozen=True, slots=True)
class ModelEvent:
    """`data` is None where llama.cpp sends none."""

    model: str
    event: str
    data: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        shown = {"model": self.model, "event": self.event}
        return shown if self.data is None else {**shown, "data": self.data}


class ModelEvents:
    """Created after the fleet, whose models know a change before it is told here."""

    def __init__(self, fleet: Fleet, pulls: Pulls, facts: FactsReader) -> None:
        self._fleet = fleet
        self._pulls = pulls
        self._facts = facts
        self._ring: BroadcastRing[ModelEvent] = BroadcastRing(_CAPACITY)
        self._last: dict[str, LoadState] = {}
        self._names: dict[str, tuple[str, ...]] = {}  # by instance: a model that has left the catalog too
        self._loads: set[asyncio.Task[None]] = set()
        fleet.manager.events.add_listener(self._on_event)
        pulls.add_listener(self._on_download)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        closing = asyncio.create_task(self._close_with_manager(), name="model events")
        try:
            yield
        finally:
            for task in (closing, *self._loads):
                task.cancel()
            await asyncio.wait((closing, *self._loads))

    def subscribe(self) -> AsyncIterator[ModelEvent]:
        """Events from now on, until a shutdown begins."""
        return self._ring.follow(self._ring.last_number)

    def watch_start(self, model: Model) -> None:
        """A start was requested: it is told now, and so is its failure before there was a process."""
        self._tell_state(model.name, LoadState.LOADING, model)

    def removed(self, model: str) -> None:
        self._tell(ModelEvent(model, "model_remove"))

    def reloaded(self) -> None:
        self._tell(ModelEvent(ALL, "models_reload"))

    async def _close_with_manager(self) -> None:
        """The manager's events end when a shutdown begins."""
        self._ring.reopen()
        async for _ in self._fleet.manager.events.subscribe():
            pass
        self._ring.close()

    def _follow_load(self, model: Model) -> None:
        task = asyncio.create_task(self._tell_progress(model), name=f"load of {model.name}")
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)

    async def _tell_progress(self, model: Model) -> None:
        """Until the start is over; then how it ended, unless an event of an instance has told that."""
        shown = None
        while self._last.get(model.name) is LoadState.LOADING and (
            model.is_starting or model.start_requested
        ):
            await asyncio.sleep(_PROGRESS_INTERVAL_S)
            progress = load_progress(model)
            if progress is not None and progress != shown:
                data = {"status": LoadState.LOADING.value, "progress": progress}
                self._tell(ModelEvent(model.name, _STATUS, data))
                shown = progress
        self._tell_state(model.name, state_of_replicas(model), model)

    def _on_event(self, event: Event) -> None:
        if event.type not in ("instance.state", "instance.deleted"):
            return
        having = tuple(model.name for model in self._fleet.having_replica(event.instance_id))
        names = having or self._names.get(event.instance_id, ())
        self._names[event.instance_id] = names
        if event.type == "instance.deleted":
            self._names.pop(event.instance_id)
        for name in names:
            model = self._fleet.known(name)
            state = LoadState.UNLOADED if model is None else state_of_replicas(model)
            self._tell_state(name, state, model)

    def _tell_state(self, name: str, state: LoadState, model: Model | None) -> None:
        if self._last.get(name, LoadState.UNLOADED) is state:
            return
        self._last[name] = state
        data: dict[str, Any] = {"status": state.value}
        if state is LoadState.UNLOADED:
            del self._last[name]
            data["exit_code"] = 0 if model is None else exit_code_of(model)
        elif state is LoadState.LOADING and model is not None:
            self._follow_load(model)
        elif state is LoadState.LOADED and model is not None:
            entry = openai_entry(model, self._facts.of(model), public=True)
            data["info"] = {name: value for name, value in entry.items() if name not in _UNSETTLED}
        self._tell(ModelEvent(name, _STATUS, data))

    def _on_download(self, model: str, outcome: Line | ManagerError | None) -> None:
        if outcome is None:
            progress = self._pulls.progress().get(model, {})
            if progress:
                self._tell(ModelEvent(model, "download_progress", {"progress": progress}))
            return
        has_failed = isinstance(outcome, ManagerError) or "error" in outcome
        self._tell(ModelEvent(model, "download_failed" if has_failed else "download_finished"))

    def _tell(self, event: ModelEvent) -> None:
        self._ring.extend((event,))
