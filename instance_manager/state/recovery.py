"""Which engines of an earlier Berth still run, and what is to become of the others.

An engine is known again by its instance token, the boot's id, and pids with their start times; a pid alone
is never trusted, so that no stranger who has got it since is touched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from instance_manager.config import ManagerConfig
from instance_manager.process.process_tree import (
    ProcessId,
    RunStatus,
    find_by_prefix,
    read_status,
    until_tree_gone,
)
from instance_manager.process.shim import read_stat
from instance_manager.process.shim_processes import note_again, status_from_processes
from instance_manager.state.session import StateSession
from instance_manager.state.stores.records import InstanceRecord
from instance_manager.types import InstanceState, RunSecrets

logger = logging.getLogger("berth.manager")

SWEEP_DEADLINE_S = 10.0  # for what can't be adopted to be gone (large GPU contexts need seconds)


class RecoveryAction(Enum):
    """What becomes of an instance that an earlier Berth has left."""

    LEAVE = auto()  # it had ended, and stays so until somebody starts it
    START = auto()  # it was to start, and nothing of it runs: it is started
    ADOPT = auto()  # its process is known for certain, be it alive or dead
    CLEAN_UP = auto()  # it ran, and can't be found for certain: what is left of it is ended


@dataclass(frozen=True, slots=True)
class FoundRun:
    """The process that an earlier Berth has started for an instance, and how it stood."""

    action: RecoveryAction
    state: InstanceState  # that the instance begins in now
    secrets: RunSecrets | None
    status: RunStatus | None  # with ADOPT
    status_path: Path
    engine: ProcessId | None  # with LOST, where it is certain which process that was
    was_ready: bool
    level: int  # of sleep
    log_mark: int = 0  # number of the last line before the process's own


@dataclass(frozen=True, slots=True)
class RecoveredInstance:
    """One record of ours with what was found for it."""

    record: InstanceRecord
    run: FoundRun


@dataclass(frozen=True, slots=True)
class RecoveredInstances:
    """All that an earlier Berth has left."""

    instances: tuple[RecoveredInstance, ...]
    strays: frozenset[str]  # tokens of ours that live processes carry, and no instance of these has
    status_files: tuple[Path, ...]  # of nobody


async def recover_instances(
    session: StateSession, records: Iterable[InstanceRecord], config: ManagerConfig
) -> RecoveredInstances:
    """Look at our records, the status files and all processes. Takes some ten milliseconds.

    Nothing of ours may be started meanwhile.
    """
    ours = [record for record in records if record.owner == session.owner]
    return await asyncio.to_thread(_find, session, ours, config)


def _find(session: StateSession, records: list[InstanceRecord], config: ManagerConfig) -> RecoveredInstances:
    carriers: Mapping[str, Collection[int]] = {}
    if session.is_sole:
        by_token = find_by_prefix(session.token_prefix)
        carriers = {token: {one.pid for one in found} for token, found in by_token.items()}
    leftovers = []
    missed = []  # status files that are gone while their shims run
    for record in sorted(records, key=lambda one: one.created_at):
        path = config.status_path(record.instance_id)
        of_token = carriers.get(record.token or "", ())
        status = read_status(path)
        if status is None and record.pid and record.pid_start_ticks and record.boot_id == session.boot_id:
            engine = ProcessId(record.pid, record.pid_start_ticks)
            status = status_from_processes(record.token or "", of_token, engine)
            if status is not None:
                missed.append((path, status))
        run = _look_for(record, path, status, session.boot_id, of_token)
        leftovers.append(RecoveredInstance(record, run))
    note_again(missed)
    known = {one.record.token for one in leftovers if one.run.action is not RecoveryAction.LEAVE}
    paths = {config.status_path(record.instance_id) for record in records}
    folder = config.status_path("any").parent
    orphaned = [path for path in folder.glob("*.json") if path not in paths] if session.is_sole else []
    return RecoveredInstances(tuple(leftovers), frozenset(carriers.keys() - known), tuple(orphaned))


def _look_for(
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
    fate = judge(record, has_status=status is not None, is_certain=is_certain)
    secrets = None
    if record.token and record.api_key:
        secrets = RunSecrets(record.token, record.api_key)
    engine = None
    if status is None and record.boot_id == boot_id and record.pid in carriers and record.pid_start_ticks:
        engine = ProcessId(record.pid or 0, record.pid_start_ticks)
    return FoundRun(
        fate,
        _first_state(record.state, fate),
        secrets,
        status if fate is RecoveryAction.ADOPT else None,
        path,
        engine,
        was_ready=record.ready_at is not None,
        level=record.sleep_level,
    )


def judge(record: InstanceRecord, *, has_status: bool, is_certain: bool) -> RecoveryAction:
    """Pure. `has_status`: its shim has noted, in this boot, who runs; `is_certain`: and nobody else does."""
    if record.state.is_terminal:
        return RecoveryAction.START if record.extra.get("is_wanted") else RecoveryAction.LEAVE
    if is_certain and record.port is not None:
        return RecoveryAction.ADOPT
    if record.state is InstanceState.STARTING and not has_status:
        return RecoveryAction.START
    return RecoveryAction.CLEAN_UP


def _first_state(left_in: InstanceState, fate: RecoveryAction) -> InstanceState:
    """What ran has yet to show that it does; what had ended, or was to end, is where it was."""
    if left_in.is_terminal or left_in is InstanceState.STOPPING:
        return left_in
    return InstanceState.STARTING if fate is RecoveryAction.START else InstanceState.HEALTH_CHECKING


def _is_certain(status: RunStatus, carriers: Collection[int]) -> bool:
    """Whether the pids that are noted are still, if anybody's, those of the shim and its engine.

    The shim never writes over its environment; an engine may, but is the shim's child.
    """
    if status.shim.is_alive and status.shim_pid not in carriers:
        return False
    if not status.engine.is_alive or status.engine_pid in carriers:
        return True
    stat = read_stat(status.engine_pid)
    return stat is not None and status.shim.is_alive and stat.parent == status.shim_pid


async def reap(strays: Collection[str], status_files: Collection[Path]) -> None:
    """End all processes with these tokens, and forget what was noted of them."""
    for token in strays:
        logger.warning("processes of an engine that nobody knows any more are ended")
        if not await until_tree_gone(token, None, SWEEP_DEADLINE_S):
            logger.error("they are still there %.0f s after SIGKILL", SWEEP_DEADLINE_S)
    try:
        for path in status_files:
            await asyncio.to_thread(path.unlink, missing_ok=True)
    except OSError as error:
        logger.warning("an old status file stays: %s", error)
