"""Finds what an attack may have leaked: processes, and keys in logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

_SETTLE_S = 10.0


def still_there(find: Callable[[], Any]) -> list[Any]:
    """The result of `find` if it is still truthy after a while, as a list of one or none."""
    deadline = time.monotonic() + _SETTLE_S
    while (found := find()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [found] if found else []


def is_dead(pid: int) -> bool:
    with suppress(psutil.Error):
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    return True


def belongs_to(process: psutil.Process, pid: int) -> bool:
    """Whether it is a child of that process, such as one that compiles grammars, or has ended."""
    with suppress(psutil.Error):
        return any(parent.pid == pid for parent in process.parents())
    return True


def described(processes: Iterable[psutil.Process]) -> list[str]:
    """The pid and the end of the command line of each."""
    shown = []
    for process in processes:
        with suppress(psutil.Error):
            shown.append(f"{process.pid} {' '.join(process.cmdline())[-80:]}")
    return shown


def files_with(paths: Iterable[Path], words: Sequence[str]) -> list[str]:
    """Names of the files that contain one of the words."""
    found = []
    for path in paths:
        if path.is_file():
            data = path.read_bytes()
            found += [path.name] if any(word.encode() in data for word in words) else []
    return found
