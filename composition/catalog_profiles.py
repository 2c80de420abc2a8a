"""Turns models.yaml and the models found on disk into profiles: the one place that knows both sides."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from api.protocols.registry import load_protocols
from composition.gguf_discovery import find_gguf, gguf_at
from composition.policies import engine_kinds, named_engine, options_of
from configs.catalog import Catalog, CatalogFile
from configs.catalog_edit import edit_model, preview_edit
from configs.catalog_error import CatalogError
from configs.discovery import Discovery, FoundModel, config_problem, files_at, scan_models
from configs.home import expand_home
from configs.model_entry import ModelEntry
from configs.one_line import one_line
from configs.remarks import Remark
from configs.settings import Settings
from configs.settings_remarks import remarks_on
from instance_manager.backends import BACKENDS, EngineChoice, backend_of, choose_engine
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidCatalog
from instance_manager.fleet.profiles import ModelProfile, ModelSource
from instance_manager.gguf.names import as_listed
from instance_manager.memory.gpu import GpuDriver
from instance_manager.process.environment import child_environment
from instance_manager.process.hub_cache import hub_cache
from instance_manager.types import ExpireAction

# An entry's fields that a profile has under the same name; `_profile` converts some of them.
_SAME_FIELDS = ModelEntry.model_fields.keys() & {each.name for each in fields(ModelProfile)}


class CatalogProfiles:
    """The current profiles, from models.yaml and from the folders of models."""

    def __init__(
        self,
        settings: Settings,
        protocols: frozenset[str],
        cache: Path,
        list_gpus: Callable[[], Sequence[object]] = tuple,
    ) -> None:
        """`cache`: of the hub. Raises CatalogError."""
        self._settings = settings
        self._protocols = protocols
        self._cache = cache
        self._list_gpus = list_gpus
        self._file = CatalogFile(settings.models_file, self._check, engine_kinds())
        self._discovery = Discovery([], [])
        self._names: frozenset[str] = frozenset()  # and aliases of all models

    def profiles(self) -> list[ModelProfile]:
        """The catalog's models, and models found on disk under names that the catalog doesn't use."""
        catalog = self._file.current
        self._discovery = scan_models(self._settings.model_dirs, self._cache, find_gguf)
        on_disk = {name: found for found in self._discovery.models for name in (*found.aliases, found.name)}
        profiles = {
            name: _with_files(self._profile(name, entry), self._files_of(entry, on_disk))
            for name, entry in catalog.models.items()
        }
        taken = profiles.keys() | {alias for profile in profiles.values() for alias in profile.aliases}
        for found in self._discovery.models:
            aliases = tuple(name for name in found.aliases if name not in taken)
            if found.name not in taken:
                profile = self._profile(found.name, catalog.found_entry(found.path))
                profile = replace(_with_files(profile, found), source=ModelSource.DISCOVERED, aliases=aliases)
                profiles[found.name] = profile
            elif aliases and self._is_of(profiles.get(found.name), found):  # an entry of the model's own name
                own = profiles[found.name]
                profiles[found.name] = replace(own, aliases=(*own.aliases, *aliases))
        self._names = frozenset(name for one in profiles.values() for name in (one.name, *one.aliases))
        return list(profiles.values())

    @staticmethod
    def _is_of(profile: ModelProfile | None, found: FoundModel) -> bool:
        return profile is not None and profile.model in (found.name, str(found.path))

    def found(self) -> Iterator[Remark]:
        """Remarks for the operator on settings, folders and the catalog's paths, as last read."""
        settings = self._settings
        for kind in BACKENDS.values():
            is_default = settings.default_engine == kind.name
            problems = kind.problems_of_settings(options_of(settings), is_default=is_default)
            yield from (Remark(problem, is_mistake=True) for problem in problems)
        yield from remarks_on(settings)
        yield from self._discovery.remarks
        default = settings.default_model
        if "default_model" in settings.model_fields_set and not self._is_here(default):
            yield Remark(
                f"DEFAULT_MODEL={default}: no local model has this name; it would be loaded from the hub"
            )
        for name, entry in self._file.current.models.items():
            folder = entry.path if self._finds_model(entry) else None
            if folder is None or not folder.is_dir() or gguf_at(folder) is not None:
                continue
            if (problem := config_problem(folder)) is not None:
                yield Remark(f"model {name}: {folder}: {problem}", is_mistake=True)

    def _is_here(self, name: str) -> bool:
        return name in self._names or expand_home(name).is_dir()

    def remarks(self) -> list[str]:
        return [one_line(remark.text) for remark in self.found()]

    def preview(self, name: str, changes: Mapping[str, Any]) -> ModelProfile:
        """Raises InvalidCatalog."""
        try:
            catalog = preview_edit(self._settings.models_file, name, changes, engine_kinds())
        except CatalogError as error:
            raise InvalidCatalog(str(error)) from error
        return self._profile(name, catalog.models[name])

    def reload(self, *, only_if_changed: bool) -> bool:
        """Raises InvalidCatalog; the old catalog then stays in use."""
        try:
            if only_if_changed:
                return self._file.reload_if_changed() is not None
            self._file.reload()
        except CatalogError as error:
            raise InvalidCatalog("; ".join(error.lines)) from error
        return True

    def edit(self, name: str, changes: Mapping[str, Any]) -> None:
        """Raises InvalidCatalog."""
        try:
            edit_model(self._settings.models_file, name, changes, engine_kinds())
        except CatalogError as error:
            raise InvalidCatalog(str(error)) from error

    def _profile(self, name: str, entry: ModelEntry) -> ModelProfile:
        same, choice = {field: getattr(entry, field) for field in _SAME_FIELDS}, self._choice(entry)
        converted = {
            "name": name,
            "model": str(entry.path) if entry.path is not None else (entry.model or name),
            "engine": choice.engine,
            "engine_reason": choice.reason,
            "params": entry.engine_params(),
            "idle_timeout_s": entry.timeout,
            "expire_action": None if entry.expire_action is None else ExpireAction(entry.expire_action),
            "set_params": entry.filters.set_params,
            "strip_params": frozenset(entry.filters.strip_params),
        }
        return ModelProfile(**(same | converted))

    def _choice(self, entry: ModelEntry) -> EngineChoice:
        """The entry's engine, and why."""
        named = named_engine(self._settings, entry.engine)
        return named or choose_engine(
            entry.target,
            model_dirs=self._settings.model_dirs,
            environ={"HF_HUB_CACHE": str(self._cache)},
            options=options_of(self._settings),
            has_gpu=lambda: bool(self._list_gpus()),
        )

    def _finds_model(self, entry: ModelEntry) -> bool:
        return backend_of(self._choice(entry).engine).finds_model

    def _files_of(self, entry: ModelEntry, on_disk: Mapping[str, FoundModel]) -> FoundModel | None:
        """The files that an entry's engine would load, if they are local; `on_disk`: by name."""
        if entry.path is not None:
            return gguf_at(entry.path) or files_at(entry.path)
        return on_disk.get(as_listed(entry.target)) if self._finds_model(entry) else None

    def _check(self, catalog: Catalog) -> None:
        for name, entry in catalog.models.items():
            if entry.protocol is not None and entry.protocol not in self._protocols:
                known = ", ".join(sorted(self._protocols))
                raise CatalogError(
                    self._settings.models_file,
                    f"unknown protocol; known protocols: {known}",
                    keys=("models", name, "protocol"),
                    value=entry.protocol,
                )


def _with_files(profile: ModelProfile, found: FoundModel | None) -> ModelProfile:
    if found is None:
        return profile
    return replace(
        profile,
        size_bytes=found.size_bytes,
        modified=found.modified,
        description=found.description,
        file_problem=found.problem,
    )


def catalog_profiles(settings: Settings, config: ManagerConfig) -> CatalogProfiles:
    """Raises PluginError and CatalogError."""
    adapters = load_protocols(settings.protocol_plugins)
    names = frozenset(adapter.name for adapter in adapters)
    return CatalogProfiles(settings, names, hub_cache_of(config), GpuDriver(os.environ).list_gpus)


def hub_cache_of(config: ManagerConfig) -> Path:
    """Where engines store downloads, unless a model's `env` says otherwise."""
    return hub_cache(child_environment(os.environ, config.engine_env))
