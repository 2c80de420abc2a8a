"""Reads the settings from flags, the environment and `.env`, and collects all mistakes in them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from configs.engine_kinds import AUTO, EngineKinds, one_of
from configs.env_file import (
    ENCODING,
    EnvFile,
    former_names,
    nearly_settings,
    read_env_file,
    shown,
)
from configs.one_line import one_line
from configs.settings import NAMES, Settings
from configs.settings_error import SettingsError


@dataclass(frozen=True, slots=True)
class Given:
    """A setting's value from a flag or a former name, and the name it was given under."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and everything that is wrong with their sources.

    Invalid settings have their defaults in `settings`, so that further checks are possible.
    """

    settings: Settings
    mistakes: tuple[str, ...]
    remarks: tuple[str, ...]
    notes: tuple[str, ...] = ()  # not mistakes, but worth knowing


def load_settings(
    env_file: Path | None = None,
    flags: Mapping[str, Given] | None = None,
    kinds: EngineKinds | None = None,
) -> Settings:
    """As `read_settings`. Raises SettingsError with a line for each mistake."""
    loaded = read_settings(env_file, flags, kinds)
    if loaded.mistakes:
        raise SettingsError(*loaded.mistakes)
    return loaded.settings


def read_settings(
    env_file: Path | None = None,
    flags: Mapping[str, Given] | None = None,
    kinds: EngineKinds | None = None,
) -> Loaded:
    """Read `flags` (by field), which win over the environment, which wins over `env_file` if there is one.

    `kinds`: the engines that may be the default; None = any.
    """
    file = read_env_file(env_file, NAMES)
    former = {
        field: Given(name, value) for field, (name, value) in former_names(file.variables, os.environ).items()
    }
    given = {**former, **(flags or {})}
    settings, mistakes = _validated(file, given)
    if kinds is not None and settings.default_engine not in kinds.for_default:
        mistakes.append(_unknown_engine(settings.default_engine, given, kinds))
        settings = settings.model_copy(update={"default_engine": AUTO})
    mistakes = [*file.mistakes, *mistakes, *_contradictions(settings)]
    notes = [f"{one.name}={one.value} is used as {field.upper()}" for field, one in former.items()]
    if file.others:
        notes.append(f"{file.path}: not settings of Berth, ignored: {', '.join(file.others)}")
    remarks = [
        *(
            f"{one.name}: every user of this machine can read it in the process list; put keys into .env or "
            "API_KEYS_FILE"
            for field, one in (flags or {}).items()
            if field in ("api_keys", "admin_api_keys")
        ),
        *file.remarks,
        *nearly_settings(os.environ, NAMES),
    ]
    escaped = [tuple(map(one_line, lines)) for lines in (mistakes, remarks, notes)]
    return Loaded(settings, *escaped)


def _validated(file: EnvFile, given: Mapping[str, Given]) -> tuple[Settings, list[str]]:
    """The settings, with defaults for invalid ones, and a line for each of those."""
    values: dict[str, Any] = {  # an empty value counts as not given, also over the environment
        field: one.value if one.value else Settings.model_fields[field].default
        for field, one in given.items()
    }
    mistakes: list[str] = []
    while True:
        try:
            sources: Any = {"_env_file": file.path, "_env_file_encoding": ENCODING}
            return Settings(**sources, **values), mistakes
        except ValidationError as error:
            for details in error.errors(include_url=False):
                field = str(details["loc"][0]).lower()
                mistakes.append(_mistake(given[field].name if field in given else field.upper(), details))
                values[field] = Settings.model_fields[field].default


def _unknown_engine(value: str, given: Mapping[str, Given], kinds: EngineKinds) -> str:
    name = given["default_engine"].name if "default_engine" in given else "DEFAULT_ENGINE"
    return f"{name}={shown(name, value)}: Input should be {one_of(kinds.for_default)}"


def _contradictions(settings: Settings) -> Iterator[str]:
    """Mistakes in settings that are valid one by one."""
    try:
        settings.parameters()
    except SettingsError as error:
        yield str(error)
    if settings.on_shutdown == "detach" and settings.state_url.startswith("memory:"):
        yield (
            "ON_SHUTDOWN=detach: with STATE_URL=memory://, the engines could not be found again; "
            "use another STATE_URL, or ON_SHUTDOWN=stop"
        )
    if settings.log_otlp and settings.otel_exporter_otlp_endpoint is None:
        yield "LOG_OTLP=true: needs OTEL_EXPORTER_OTLP_ENDPOINT, the collector to send to"
    last_port = settings.vllm_base_port + settings.vllm_max_instances - 1
    if last_port > 65535:
        yield (
            f"VLLM_MAX_INSTANCES={settings.vllm_max_instances}: needs ports {settings.vllm_base_port} to "
            f"{last_port}, but ports end at 65535; lower it or VLLM_BASE_PORT"
        )
    if settings.log_file is not None and (problem := _unwritable(settings.log_file)):
        yield f"LOG_FILE={settings.log_file}: {problem}"


def _unwritable(path: Path) -> str | None:
    """Why no log can be written to a file; None if one can."""
    if path.is_dir():
        return "is a folder; name a file in it"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    target = path if path.exists() else path.parent
    return None if os.access(target, os.W_OK) else "Permission denied"


def _mistake(name: str, details: ErrorDetails) -> str:
    return f"{name}={shown(name, details['input'])}: {details['msg'].removeprefix('Value error, ')}"
