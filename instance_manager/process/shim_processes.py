"""Identifies running shims whose status files, or all of the state, are gone. Linux only.

A shim's command line names its status file, and its environment, which it never overwrites, holds its
engine's token: together they identify its owner. Blocks for tens of milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Collection, Iterable
from dataclasses import asdict
from pathlib import Path

import psutil

from instance_manager.process.process_tree import ProcessId, RunStatus
from instance_manager.process.shim import TOKEN_VARIABLE, read_boot_id, read_stat

logger = logging.getLogger("berth.manager")

_OPTION = "--status="


def shim_owners(run_dir: Path) -> frozenset[str]:
    """The owners of the live engines whose status files belong in this directory."""
    owners = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            token = process.environ().get(TOKEN_VARIABLE, "")
            status = _status_path_of(process) if token else None
            if status is not None and status.parent == run_dir.resolve():
                owners.add(token.partition(".")[0])
    return frozenset(owners)


def process_holding_deleted(path: Path) -> int | None:
    """The process that holds a deleted file of this path open; None if there is none."""
    deleted_target = f"{path.resolve()} (deleted)"
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            directory = f"/proc/{process.pid}/fd"
            for name in os.listdir(directory):
                with contextlib.suppress(OSError):
                    if os.readlink(f"{directory}/{name}") == deleted_target:
                        return int(process.pid)
    return None


def status_from_processes(token: str, carriers: Collection[int], engine: ProcessId) -> RunStatus | None:
    """The status that this engine's shim would have written; None unless its shim is certain."""
    stat = read_stat(engine.pid)
    if stat is None or not engine.is_alive or stat.parent not in carriers:
        return None
    with contextlib.suppress(psutil.Error, OSError):
        shim = psutil.Process(stat.parent)
        if _status_path_of(shim) is None or os.getsid(engine.pid) != engine.pid:
            return None
        return RunStatus(
            token=token,
            boot_id=read_boot_id(),
            shim_pid=shim.pid,
            shim_start_ticks=ProcessId.of(shim.pid).start_ticks,
            engine_pid=engine.pid,
            engine_start_ticks=engine.start_ticks,
            cgroup=None,
            started_at=shim.create_time(),
            ended_at=None,
            ran_s=None,
            returncode=None,
            emptied_at=None,
        )
    return None


def rewrite_status_files(found: Iterable[tuple[Path, RunStatus]]) -> None:
    """Rewrite missing status files. After a failure only the next Berth process lacks them."""
    for path, status in found:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(status)))
        except OSError as error:
            logger.warning("a missing status file can't be rewritten: %s", error)


def _status_path_of(process: psutil.Process) -> Path | None:
    """The shim's status file; None for other processes, and for a shim without one."""
    for argument in process.cmdline():
        if argument == "--":
            return None
        if argument.startswith(_OPTION):
            return Path(process.cwd(), argument.removeprefix(_OPTION)).resolve()
    return None
