"""Remarks on missing or unusable files and ports in the settings; none prevents serving."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from configs.home import expand_home
from configs.remarks import Remark
from configs.settings import Settings


def remarks_on(settings: Settings) -> Iterator[Remark]:
    """Reads the file system; blocks for milliseconds."""
    yield from _files(settings)
    yield from _ports(settings)


def _files(settings: Settings) -> Iterator[Remark]:
    """Files that Berth creates when needed get a remark only if they were named explicitly."""
    named = settings.model_fields_set
    if "models_file" in named and not settings.models_file.exists():
        yield Remark(
            f"MODELS_FILE={settings.models_file}: there is no such file yet; `berth assign` creates it"
        )
    if settings.hf_home and not expand_home(settings.hf_home).is_dir():
        yield Remark(
            f"HF_HOME={settings.hf_home}: there is no such folder yet; the first download creates it"
        )
    for field in ("log_dir", "state_dir"):
        folder: Path = getattr(settings, field)
        if problem := _unusable(folder):
            yield Remark(f"{field.upper()}={folder}: {problem}", True)


def _unusable(folder: Path) -> str | None:
    """Why no file can be written in a folder, which may not exist yet; None if one can."""
    existing = expand_home(folder).absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    is_folder = existing == folder.absolute()
    if not existing.is_dir():
        return "isn't a folder" if is_folder else f"{existing} isn't a folder"
    if not os.access(existing, os.W_OK | os.X_OK):
        return "isn't writable" if is_folder else f"can't be created: {existing} isn't writable"
    return None


def _ports(settings: Settings) -> Iterator[Remark]:
    first, count = settings.vllm_base_port, settings.vllm_max_instances
    if first <= settings.app_port < first + count:
        yield Remark(
            f"APP_PORT={settings.app_port}: is one of the engines' ports, {first} to {first + count - 1} "
            f"(VLLM_BASE_PORT, VLLM_MAX_INSTANCES); {count - 1} instances remain possible",
            True,
        )
