"""Which engines of an earlier Berth process still run, and what to do with each instance.

An engine is identified by its instance token, the boot id, and pids with their start times; a pid alone is
never trusted, so that a process that has reused it is left alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from instance_manager.config import ManagerConfig
from instance_manager.process.logs import backup_of
from instance_manager.process.process_tree import (
    ProcessId,
    RunStatus,
    find_by_prefix,
    kill_until_gone,
    read_status,
)
from instance_manager.process.shim import read_stat
from instance_manager.process.shim_processes import rewrite_status_files, status_from_processes
from instance_manager.state.session import StateSession
from instance_manager.state.stores.records import InstanceRecord
from instance_manager.types import InstanceState, RunSecrets

logger = logging.getLogger("berth.manager")

SWEEP_DEADLINE_S = 10.0  # for engines that can't be adopted to end (large GPU contexts need seconds)


class RecoveryAction(Enum):
    """What to do with an instance of an earlier process."""

    LEAVE = auto()  # it had ended, and stays so until it is started
    START = auto()  # it should start, and nothing of it runs: start it
    ADOPT = auto()  # its process was identified with certainty, alive or dead
    CLEAN_UP = auto()  # it ran, and can't be identified with certainty: end its remaining processes


@dataclass(frozen=True, slots=True)
class FoundRun:
    """The engine process that an earlier Berth process started for an instance, and its state."""

    action: RecoveryAction
    state: InstanceState  # in which the instance starts now
    secrets: RunSecrets | None
    status: RunStatus | None  # with ADOPT
    status_path: Path
    engine: ProcessId | None  # with CLEAN_UP, if the process was identified with certainty
    was_ready: bool
    level: int  # of sleep
    log_mark: int = 0  # number of the last line before the process's own


@dataclass(frozen=True, slots=True)
class RecoveredInstance:
    """One of our records with the run that was found for it."""

    record: InstanceRecord
    run: FoundRun


@dataclass(frozen=True, slots=True)
class RecoveredInstances:
    """All instances of an earlier process."""

    instances: tuple[RecoveredInstance, ...]
    orphans: frozenset[str]  # our tokens that live processes carry, but no instance has
    orphaned_files: tuple[Path, ...]  # status files and logs that belong to no instance


async def recover_instances(
    session: StateSession, records: Iterable[InstanceRecord], config: ManagerConfig
) -> RecoveredInstances:
    """Match our records with the status files and all processes. Takes some tens of milliseconds.

    Nothing may be started meanwhile.
    """
    ours = [record for record in records if record.owner == session.owner]
    return await asyncio.to_thread(_recover, session, ours, config)


def _recover(
    session: StateSession, records: list[InstanceRecord], config: ManagerConfig
) -> RecoveredInstances:
    carriers: Mapping[str, Collection[int]] = {}
    if session.is_sole:
        by_token = find_by_prefix(session.token_prefix)
        carriers = {token: {one.pid for one in found} for token, found in by_token.items()}
    recovered = []
    missing_files = []  # status files that are gone while their shims run
    for record in sorted(records, key=lambda one: one.created_at):
        path = config.status_path(record.instance_id)
        token_pids = carriers.get(record.token or "", ())
        status = read_status(path)
        if status is None and record.pid and record.pid_start_ticks and record.boot_id == session.boot_id:
            engine = ProcessId(record.pid, record.pid_start_ticks)
            status = status_from_processes(record.token or "", token_pids, engine)
            if status is not None:
                missing_files.append((path, status))
        run = _find_run(record, path, status, session.boot_id, token_pids)
        recovered.append(RecoveredInstance(record, run))
    rewrite_status_files(missing_files)
    known = {one.record.token for one in recovered if one.run.action is not RecoveryAction.LEAVE}
    paths = {config.status_path(record.instance_id) for record in records}
    folder = config.status_path("any").parent
    orphaned = [path for path in folder.glob("*.json") if path not in paths] if session.is_sole else []
    logs = [config.log_path(path.stem) for path in orphaned]
    files = (*orphaned, *logs, *map(backup_of, logs))
    return RecoveredInstances(tuple(recovered), frozenset(carriers.keys() - known), files)


def _find_run(
    record: InstanceRecord,
    path: Path,
    status: RunStatus | None,
    boot_id: str | None,
    carriers: Collection[int],
) -> FoundRun:
    is_of_record = status is not None and status.token == record.token and status.boot_id == boot_id
    if not is_of_record or record.boot_id != boot_id or not record.token:
        status = None
    is_certain = status is not None and _is_certain(status, carriers)
    action = decide(record, has_status=status is not None, is_certain=is_certain)
    secrets = None
    if record.token and record.api_key:
        secrets = RunSecrets(record.token, record.api_key)
    engine = None
    if status is None and record.boot_id == boot_id and record.pid in carriers and record.pid_start_ticks:
        engine = ProcessId(record.pid or 0, record.pid_start_ticks)
    return FoundRun(
        action,
        _first_state(record.state, action),
        secrets,
        status if action is RecoveryAction.ADOPT else None,
        path,
        engine,
        was_ready=record.ready_at is not None,
        level=record.sleep_level,
    )


def decide(record: InstanceRecord, *, has_status: bool, is_certain: bool) -> RecoveryAction:
    """Pure. `has_status`: its shim noted its pids in this boot; `is_certain`: they are still its own."""
    if record.state.is_terminal:
        return RecoveryAction.START if record.extra.get("is_wanted") else RecoveryAction.LEAVE
    if is_certain and record.port is not None:
        return RecoveryAction.ADOPT
    if record.state is InstanceState.STARTING and not has_status:
        return RecoveryAction.START
    return RecoveryAction.CLEAN_UP


def _first_state(left_in: InstanceState, action: RecoveryAction) -> InstanceState:
    """A running engine must prove itself healthy again; ended and stopping instances keep their state."""
    if left_in.is_terminal or left_in is InstanceState.STOPPING:
        return left_in
    return InstanceState.STARTING if action is RecoveryAction.START else InstanceState.HEALTH_CHECKING


def _is_certain(status: RunStatus, carriers: Collection[int]) -> bool:
    """Whether the noted pids, if alive, still belong to the shim and its engine.

    The shim never overwrites its environment; an engine may, but is the shim's child.
    """
    if status.shim.is_alive and status.shim_pid not in carriers:
        return False
    if not status.engine.is_alive or status.engine_pid in carriers:
        return True
    stat = read_stat(status.engine_pid)
    return stat is not None and status.shim.is_alive and stat.parent == status.shim_pid


async def reap(orphans: Collection[str], files: Collection[Path]) -> None:
    """End all processes with these tokens, and delete these files."""
    for token in orphans:
        logger.warning("ending processes of an engine that belongs to no instance")
        if not await kill_until_gone(token, None, SWEEP_DEADLINE_S):
            logger.error("they still run %.0f s after SIGKILL", SWEEP_DEADLINE_S)
    try:
        for path in files:
            await asyncio.to_thread(path.unlink, missing_ok=True)
    except OSError as error:
        logger.warning("an orphaned file can't be removed: %s", error)
