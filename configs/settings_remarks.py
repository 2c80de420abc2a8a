"""What settings name and isn't there, or can't be used: none of it keeps Berth from serving."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from configs.home import expand_home
from configs.remarks import Remark
from configs.settings import Settings


def remarks_on(settings: Settings) -> Iterator[Remark]:
    """Looks at the file system; blocks for milliseconds."""
    yield from _programs(settings)
    yield from _files(settings)
    yield from _ports(settings)


def _programs(settings: Settings) -> Iterator[Remark]:
    python = settings.vllm_python
    if python is None:
        if settings.default_engine == "vllm":
            yield Remark("DEFAULT_ENGINE=vllm: needs VLLM_PYTHON, the interpreter that has vLLM", True)
        return
    if shutil.which(python) is None:
        what = "can't be run" if Path(python).exists() else "isn't there"
        yield Remark(f"VLLM_PYTHON={python}: {what}; name the Python interpreter that has vLLM", True)


def _files(settings: Settings) -> Iterator[Remark]:
    """Those that Berth makes when it needs them are only told of where somebody has named them."""
    named = settings.model_fields_set
    if "models_file" in named and not settings.models_file.exists():
        yield Remark(
            f"MODELS_FILE={settings.models_file}: there is no such file yet; `berth assign` makes it"
        )
    if settings.hf_home and not expand_home(settings.hf_home).is_dir():
        yield Remark(f"HF_HOME={settings.hf_home}: there is no such folder yet; the first download makes it")
    for field in ("log_dir", "state_dir"):
        folder: Path = getattr(settings, field)
        if problem := _unusable(folder):
            yield Remark(f"{field.upper()}={folder}: {problem}", True)


def _unusable(folder: Path) -> str | None:
    """Why no file can be written in a folder, which may be yet to be made; None where one can."""
    there = expand_home(folder).absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return "is no folder" if there == folder.absolute() else f"{there} is no folder"
    if not os.access(there, os.W_OK | os.X_OK):
        return "can't be written in" if there == folder.absolute() else f"can't be made: {there} is read-only"
    return None


def _ports(settings: Settings) -> Iterator[Remark]:
    first, count = settings.vllm_base_port, settings.vllm_max_instances
    if first <= settings.app_port < first + count:
        yield Remark(
            f"APP_PORT={settings.app_port}: lies within the engines' ports, {first} to {first + count - 1} "
            f"(VLLM_BASE_PORT, VLLM_MAX_INSTANCES); {count - 1} instances are left",
            True,
        )
