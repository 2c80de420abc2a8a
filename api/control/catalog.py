"""The catalog at run time: models.yaml and what lies on disk become the fleet's profiles, and back."""

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
from api.control.models import model_record
from api.control.schemas import Device, Seconds
from instance_manager.errors import InvalidCatalog, InvalidKeyFile, InvalidSpec, ManagerError, WrongState
from instance_manager.fleet.fleet import Fleet
from instance_manager.fleet.models import Model
from instance_manager.fleet.profiles import ModelProfile, ModelSource
from instance_manager.fleet.startable import check_startable, problem_of, told_together
from instance_manager.hub.pull import Pulls
from instance_manager.hub.removal import remove_model
from instance_manager.memory.gpu import Gpu
from instance_manager.memory.placement.local import choose_devices

logger = logging.getLogger("berth")

router = APIRouter(tags=["models"])

_LOOK_INTERVAL_S = 2.0  # at models.yaml
_DISCOVER_EVERY = 15  # looks, one at the folders

_FLAGS = ("gpu_memory_utilization", "max_model_len", "params")  # what becomes flags of an engine


class ProfileSource(Protocol):
    """Where profiles come from: models.yaml and the folders of models. All of it blocks for milliseconds."""

    def profiles(self) -> list[ModelProfile]:
        """As last read, and what lies in the folders now."""

    def reload(self, *, only_if_changed: bool) -> bool:
        """Read models.yaml again; whether it had changed. Raises InvalidCatalog; the old one stays then."""

    def remarks(self) -> list[str]:
        """What the operator should know of the settings and of the folders as last looked at."""

    def preview(self, name: str, changes: Mapping[str, Any]) -> ModelProfile:
        """What `edit` would make of the model. Raises InvalidCatalog."""

    def edit(self, name: str, changes: Mapping[str, Any]) -> None:
        """Change a model's entry; None takes a key out. Raises InvalidCatalog."""


class _Look(NamedTuple):
    """What the catalog and the folders hold at one moment."""

    profiles: list[ModelProfile]
    problems: dict[str, str]  # by model
    warnings: list[str]


class ModelFiles:
    """Keeps the fleet's profiles as the source has them."""

    def __init__(
        self,
        fleet: Fleet,
        source: ProfileSource,
        list_gpus: Callable[[], Sequence[Gpu]],
        keys: KeyStore | None = None,
    ) -> None:
        """`keys` are read again with the catalog."""
        self._fleet = fleet
        self._keys = keys or KeyStore(Keys())
        self._source = source
        self.list_gpus = list_gpus  # blocks for milliseconds
        self.warnings: list[str] = []  # as last found
        self._take(self._look())

    async def refresh(self) -> frozenset[str]:
        """Look at the folders again; the names of models that changed."""
        return self._take(await asyncio.to_thread(self._look))

    async def reload(self) -> frozenset[str]:
        """Read everything again. Raises InvalidCatalog, and then the old catalog stays."""
        await asyncio.to_thread(self._source.reload, only_if_changed=False)
        self.warnings = []  # who asks is told everything once more
        return await self.refresh()

    async def check_startable(self, model: Model) -> None:
        """Raises ManagerError for what no start of the model could get over."""
        if model.profile is not None:
            await asyncio.to_thread(self._check_startable, model.profile)

    async def reload_all(self) -> frozenset[str]:
        """The same, and the keys. What of both is right holds. Raises InvalidCatalog or InvalidKeyFile."""
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
        """Change the model's entry in models.yaml and follow it.

        Raises InvalidCatalog; InvalidSpec for what its engine, and NoSuchDevice for what this machine doesn't
        have. The file is as before then.
        """
        _check_flags(model, changes)
        if changes.get("devices"):
            # A file may be written for another machine; who asks this one means its GPUs.
            gpus = await asyncio.to_thread(self.list_gpus)
            choose_devices(gpus, 0, 0, changes["devices"])
        if model.profile is not None and model.profile.source is ModelSource.DISCOVERED:
            changes = {"path": model.profile.model, **changes}
        await asyncio.to_thread(self._edit, model.name, changes)
        await self.refresh()

    def _edit(self, name: str, changes: Mapping[str, Any]) -> None:
        """Write it, unless the engine would refuse a flag that the entry would then have."""
        profile = self._source.preview(name, changes)
        try:
            self._check_startable(profile)
        except InvalidSpec as error:
            where, _, flag = (error.param or "").partition(".")
            if where == "params" and flag in profile.params:
                raise
        except ManagerError:
            pass  # not for these changes to mend
        self._source.edit(name, changes)
        self._source.reload(only_if_changed=False)

    def _look(self) -> _Look:
        profiles, config = self._source.profiles(), self._fleet.manager.config
        gpus = self.list_gpus() if any(profile.devices for profile in profiles) else ()
        problems = {
            profile.name: problem
            for profile in profiles
            if (problem := problem_of(profile, config, gpus)) is not None
        }
        return _Look(profiles, problems, [*self._source.remarks(), *told_together(problems)])

    def _take(self, look: _Look) -> frozenset[str]:
        """Hand on what was found; what wasn't said before is said now."""
        for line in look.warnings:
            if line not in self.warnings:
                logger.warning("%s", line)
        self.warnings = look.warnings
        changed = self._fleet.set_profiles(look.profiles)
        for model in self._fleet.models:
            model.start_problem = look.problems.get(model.name)
        return changed

    def _check_startable(self, profile: ModelProfile) -> None:
        gpus = self.list_gpus() if profile.devices else ()
        check_startable(profile, self._fleet.manager.config, gpus)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Follow changes of the file and the folders."""
        watcher = asyncio.create_task(self._watch(), name="catalog")
        try:
            yield
        finally:
            watcher.cancel()
            await asyncio.wait((watcher,))

    async def _watch(self) -> None:
        for look in itertools.count(1):
            await asyncio.sleep(_LOOK_INTERVAL_S)
            try:
                changed = await asyncio.to_thread(self._source.reload, only_if_changed=True)
                if changed or look % _DISCOVER_EVERY == 0:
                    names = await self.refresh()
                    if names:
                        logger.info("models have changed: %s", ", ".join(sorted(names)))
            except InvalidCatalog as error:
                logger.error("%s; the catalog stays as it was", error)
            await self._look_at_keys()

    async def _look_at_keys(self) -> None:
        try:
            if await asyncio.to_thread(self._keys.reload_if_changed):
                logger.info("the keys have changed")
        except InvalidKeyFile as error:
            logger.error("%s; the keys stay as they were", error)


def _check_flags(model: Model, changes: Mapping[str, Any]) -> None:
    """Raise InvalidSpec for flags of a model that has none."""
    if model.profile is None or model.profile.engine != "command":
        return
    for name in _FLAGS:
        if changes.get(name):
            raise InvalidSpec(
                f"model {model.name!r} is run by a command of its own, which gets no flags from Berth: "
                f"write what {name} is to say into its `command` in models.yaml",
                param=name,
            )


class ModelPatch(BaseModel):
    """The body of `PATCH /models/{name}`, merged into the entry in models.yaml; null removes a key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    devices: list[Device] | None = Field(None, description="GPUs by number or UUID")
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    max_model_len: StrictInt | None = Field(None, ge=1)
    timeout: Seconds | None = Field(None, description="Seconds of idleness; 0 = never")
    pinned: StrictBool | None = None
    params: dict[str, Any] | None = Field(
        None,
        description="Merged into those it has; null removes one, null in place of the object all",
    )


def _as_written(value: Any) -> Any:
    """600, not 600.0: as somebody would write it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _files(request: Request) -> ModelFiles:
    files: ModelFiles = request.app.state.model_files
    return files


def _fleet(request: Request) -> Fleet:
    fleet: Fleet = request.app.state.fleet
    return fleet


Files = Annotated[ModelFiles, Depends(_files)]


@router.post("/reload", summary="Read models.yaml, the models' folders and the file of keys again")
async def reload_catalog(files: Files, fleet: Annotated[Fleet, Depends(_fleet)]) -> dict[str, Any]:
    """What runs goes on as it was started. `warnings`: what can't be started, or was looked for in vain."""
    changed = await files.reload_all()
    return {"models": len(fleet.models), "changed": sorted(changed), "warnings": files.warnings}


@router.patch("/models/{name:path}", summary="Change a model's entry in models.yaml")
async def patch_model(
    name: str,
    body: ModelPatch,
    files: Files,
    fleet: Annotated[Fleet, Depends(_fleet)],
    restart: Annotated[bool, Query(description="Start what runs again, as it is now")] = False,
) -> dict[str, Any]:
    """What isn't named stays, of `params` too; comments in the file stay. Holds from the next start on."""
    model = fleet.find(name)
    changes = body.model_dump(exclude_unset=True)
    await files.edit(model, {key: _as_written(value) for key, value in changes.items()})
    if restart:
        await files.check_startable(model)
        live = model.live
        for one in live:
            await fleet.manager.stop(one.instance_id)
        if live:
            fleet.want(model)
    return model_record(model)


@router.delete("/models/{name:path}", status_code=204, summary="Delete a downloaded model's files")
async def delete_model(
    name: str,
    files: Files,
    request: Request,
    fleet: Annotated[Fleet, Depends(_fleet)],
) -> None:
    """Its entry in models.yaml stays; a folder of MODEL_DIRS is never touched."""
    pulls: Pulls = request.app.state.pulls
    model = fleet.find(name)
    if model.profile is not None and model.profile.source is ModelSource.CATALOG and model.live:
        raise WrongState(f"model {name!r} is in use: stop it first")
    config = fleet.manager.config
    await remove_model(
        name,
        env=config.engine_env,
        model_dirs=config.model_dirs,
        in_use=lambda one: bool(model.live) or pulls.is_pulling(one),
    )
    await files.refresh()
