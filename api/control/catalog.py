"""The catalog at run time: keeps the fleet's profiles in sync with models.yaml and the model folders."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, NamedTuple, Protocol

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from api.access.key_store import Keys, KeyStore
from api.control.deps import AllPulls, Events, Facts, Models
from api.control.model_events import ModelEvents
from api.control.model_view import model_record
from api.control.schemas import Device, Seconds
from instance_manager.backends import backend_of
from instance_manager.errors import InvalidCatalog, InvalidKeyFile, InvalidSpec, ManagerError, WrongState
from instance_manager.fleet.facts_reader import FactsReader
from instance_manager.fleet.fleet import Fleet
from instance_manager.fleet.models import Model
from instance_manager.fleet.profiles import ModelProfile, ModelSource
from instance_manager.fleet.startable import (
    check_startable,
    entry_problem,
    grouped_problems,
    problem_of_files,
    problems_by_name,
)
from instance_manager.hub.pull import Pulls
from instance_manager.hub.removal import remove_files_of
from instance_manager.memory.gpu import Gpu
from instance_manager.memory.placement.local import choose_devices

logger = logging.getLogger("berth")

router = APIRouter(tags=["models"])

_CHECK_INTERVAL_S = 2.0  # of models.yaml
_DISCOVER_EVERY = 15  # checks, one scan of the folders

_FLAGS = ("gpu_memory_utilization", "max_model_len", "params")  # fields that become flags of an engine


class ProfileSource(Protocol):
    """The source of profiles: models.yaml and the model folders. All methods block for milliseconds."""

    def profiles(self) -> list[ModelProfile]:
        """The profiles of models.yaml as last read, and of the folders now."""

    def reload(self, *, only_if_changed: bool) -> bool:
        """Read models.yaml again; returns whether it had changed. On InvalidCatalog the old one stays."""

    def remarks(self) -> list[str]:
        """Warnings about the settings and about the folders as last scanned."""

    def preview(self, name: str, changes: Mapping[str, Any]) -> ModelProfile:
        """The profile that `edit` would result in. Raises InvalidCatalog."""

    def edit(self, name: str, changes: Mapping[str, Any]) -> None:
        """Change a model's entry; None removes a key. Raises InvalidCatalog."""


class _CatalogSnapshot(NamedTuple):
    """The catalog and the folders at one moment."""

    profiles: list[ModelProfile]
    problems: dict[str, str]  # of entries, by model
    warnings: list[str]


class ModelFiles:
    """Keeps the fleet's profiles in sync with the source."""

    def __init__(
        self,
        fleet: Fleet,
        source: ProfileSource,
        list_gpus: Callable[[], Sequence[Gpu]],
        keys: KeyStore | None = None,
    ) -> None:
        """`keys` are reloaded with the catalog."""
        self._fleet = fleet
        self._keys = keys or KeyStore(Keys())
        self._source = source
        self.list_gpus = list_gpus  # blocks for milliseconds
        self.warnings: list[str] = []  # of the last scan
        self.facts = FactsReader(fleet.manager.config)  # of the models
        self._listeners: list[Callable[[], None]] = []
        self._apply(self._scan())

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` when models are new, gone or changed."""
        self._listeners.append(listener)

    async def refresh(self) -> frozenset[str]:
        """Scan the folders again; returns the names of changed models."""
        return self._apply(await asyncio.to_thread(self._scan))

    async def reload(self) -> frozenset[str]:
        """Read everything again. Raises InvalidCatalog and keeps the old catalog."""
        await asyncio.to_thread(self._source.reload, only_if_changed=False)
        self.warnings = []  # so that all warnings are logged again
        return await self.refresh()

    async def check_startable(self, model: Model) -> None:
        """Raises ManagerError for a problem that would make any start of the model fail."""
        if model.profile is not None:
            await asyncio.to_thread(self._check_startable, model.profile)
        if (refusal := model.refusal) is not None:
            raise refusal

    async def reload_all(self) -> frozenset[str]:
        """Reload the catalog and the keys; one error keeps only its own old state. Raises both's errors."""
        try:
            changed = await self.reload()
        except InvalidCatalog as error:
            try:
                await asyncio.to_thread(self._keys.reload)
            except InvalidKeyFile as other:
                raise InvalidCatalog(f"{error}; and {other}") from None
            raise
        await asyncio.to_thread(self._keys.reload)
        return changed

    async def edit(self, model: Model, changes: Mapping[str, Any]) -> None:
        """Change the model's entry in models.yaml and apply it.

        Raises InvalidCatalog, InvalidSpec for a flag its engine lacks, NoSuchDevice for a device this machine
        lacks. The file is then unchanged.
        """
        _check_flags(model, changes)
        if changes.get("devices"):
            # A file may be written for another machine, but this request is about this machine's GPUs.
            gpus = await asyncio.to_thread(self.list_gpus)
            choose_devices(gpus, 0, 0, changes["devices"])
        if model.profile is not None and model.profile.source is ModelSource.DISCOVERED:
            changes = {"path": model.profile.model, **changes}
        await asyncio.to_thread(self._edit, model.name, changes)
        await self.refresh()

    def _edit(self, name: str, changes: Mapping[str, Any]) -> None:
        """Write the changes, unless the engine would reject a flag of the resulting entry."""
        profile = self._source.preview(name, changes)
        try:
            self._check_startable(profile)
        except InvalidSpec as error:
            where, _, flag = (error.param or "").partition(".")
            if where == "params" and flag in profile.params:
                raise
        except ManagerError:
            pass  # not caused by these changes
        self._source.edit(name, changes)
        self._source.reload(only_if_changed=False)

    def _scan(self) -> _CatalogSnapshot:
        profiles, config = self._source.profiles(), self._fleet.manager.config
        remarks = self._source.remarks()  # engine kinds look at their programs first
        gpus = self.list_gpus() if any(profile.devices for profile in profiles) else ()
        self.facts.read(profiles)
        problems = problems_by_name(profiles, lambda one: entry_problem(one, config, gpus))
        rest = [one for one in profiles if one.name not in problems]
        lines = grouped_problems(problems | problems_by_name(rest, lambda one: problem_of_files(one, config)))
        return _CatalogSnapshot(profiles, problems, [*remarks, *lines])

    def _apply(self, snapshot: _CatalogSnapshot) -> frozenset[str]:
        """Apply a snapshot, and log its new warnings."""
        for line in snapshot.warnings:
            if line not in self.warnings:
                logger.warning("%s", line)
        self.warnings = snapshot.warnings
        changed = self._fleet.set_profiles(snapshot.profiles)
        for model in self._fleet.models:
            model.start_problem = snapshot.problems.get(model.name)
        if changed:
            for listener in self._listeners:
                listener()
        return changed

    def _check_startable(self, profile: ModelProfile) -> None:
        gpus = self.list_gpus() if profile.devices else ()
        check_startable(profile, self._fleet.manager.config, gpus)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch the file and the folders for changes."""
        watcher = asyncio.create_task(self._watch(), name="catalog")
        try:
            yield
        finally:
            watcher.cancel()
            await asyncio.wait((watcher,))

    async def _watch(self) -> None:
        for check in itertools.count(1):
            await asyncio.sleep(_CHECK_INTERVAL_S)
            try:
                changed = await asyncio.to_thread(self._source.reload, only_if_changed=True)
                if changed or check % _DISCOVER_EVERY == 0:
                    names = await self.refresh()
                    if names:
                        logger.info("models changed: %s", ", ".join(sorted(names)))
            except InvalidCatalog as error:
                logger.error("%s; keeping the previous catalog", error)
            await self._check_keys()

    async def _check_keys(self) -> None:
        try:
            if await asyncio.to_thread(self._keys.reload_if_changed):
                logger.info("the API keys changed")
        except InvalidKeyFile as error:
            logger.error("%s; keeping the previous API keys", error)


def _check_flags(model: Model, changes: Mapping[str, Any]) -> None:
    """Raise InvalidSpec for flags of a model whose engine takes none."""
    if model.profile is None or backend_of(model.profile.engine).takes_params:
        return
    for name in _FLAGS:
        if changes.get(name):
            raise InvalidSpec(
                f"model {model.name!r} is run by its own command, to which Berth adds no flags: "
                f"put {name} into its `command` in models.yaml",
                param=name,
            )


class ModelPatch(BaseModel):
    """The body of `PATCH /models/{name}`, merged into the entry in models.yaml; null removes a key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    devices: list[Device] | None = Field(None, description="GPUs by number or UUID")
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    max_model_len: StrictInt | None = Field(None, ge=1)
    timeout: Seconds | None = Field(None, description="Idle time-out in seconds; 0 = never")
    pinned: StrictBool | None = None
    params: dict[str, Any] | None = Field(
        None,
        description="Merged into the existing ones; null as a value removes one, null for the object all",
    )


def _as_written(value: Any) -> Any:
    """600, not 600.0: as a person would write it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _files(request: Request) -> ModelFiles:
    files: ModelFiles = request.app.state.model_files
    return files


Files = Annotated[ModelFiles, Depends(_files)]


@router.post("/reload", summary="Reload models.yaml, the model folders and the API keys file")
async def reload_catalog(files: Files, fleet: Models) -> dict[str, Any]:
    """Running engines are not affected. `warnings`: models that can't be started, and missing folders."""
    changed = await files.reload_all()
    return {"models": len(fleet.models), "changed": sorted(changed), "warnings": files.warnings}


@router.patch("/models/{name:path}", summary="Change a model's entry in models.yaml")
async def patch_model(
    name: str,
    body: ModelPatch,
    files: Files,
    fleet: Models,
    facts: Facts,
    restart: Annotated[bool, Query(description="Restart running replicas with the new entry")] = False,
) -> dict[str, Any]:
    """Omitted fields stay, also within `params`, as do the file's comments. Applies at the next start."""
    model = fleet.find(name)
    changes = body.model_dump(exclude_unset=True)
    await files.edit(model, {key: _as_written(value) for key, value in changes.items()})
    if restart:
        await files.check_startable(model)
        live = model.live
        for instance in live:
            await fleet.manager.stop(instance.instance_id)
        if live:
            fleet.request_start(model)
    return model_record(model, facts)


@router.delete("/models/{name:path}", status_code=204, summary="Delete a downloaded model's files")
async def delete_model(name: str, files: Files, fleet: Models, pulls: AllPulls, events: Events) -> None:
    """Its entry in models.yaml stays; folders in MODEL_DIRS are never touched."""
    model = fleet.find(name)
    if model.profile is not None and model.profile.source is ModelSource.CATALOG and model.live:
        raise WrongState(f"model {name!r} is running; stop it first")
    await delete_files(model, name, fleet, files, pulls, events)


async def delete_files(
    model: Model, name: str, fleet: Fleet, files: ModelFiles, pulls: Pulls, events: ModelEvents
) -> None:
    """Delete the files of the model with this hub id. Raises as `remove_files_of` does."""
    await remove_files_of(model, name, fleet.manager, pulls.is_pulling)
    await files.refresh()
    events.removed(model.name)
