"""This node's claim to its state: a directory of its own, its name, its store and its lease there."""

from __future__ import annotations

import asyncio
import logging
import platform
import secrets
from contextlib import suppress
from pathlib import Path

from instance_manager.config import ManagerConfig
from instance_manager.process.shim import read_boot_id
from instance_manager.process.shim_processes import process_holding_deleted, shim_owners
from instance_manager.state.stores.base import StateStore
from instance_manager.state.stores.errors import LeaseLost, StoreInUse, StoreUnavailable
from instance_manager.state.stores.lock import FileLock
from instance_manager.state.stores.memory import MemoryStore
from instance_manager.state.stores.open import known_owner_id, open_store, owner_id, set_owner_id

logger = logging.getLogger("berth.state")

_LEASE_S = 10.0  # after which other nodes consider this one dead; a shared store renews it by itself


class StateSession:
    """Created by `open`, released by `close`."""

    def __init__(
        self, store: StateStore, owner: str, lock: FileLock | None, config: ManagerConfig | None = None
    ) -> None:
        self.store = store
        self.owner = owner  # the same after every restart in the same STATE_DIR
        self.boot_id = _boot_id()  # None = unknown here: then no pid can be trusted after a restart
        # The holder of ports. Machines may share a name; containers of one machine share its boot id.
        self.node = f"{platform.node()}/{(self.boot_id or '')[:8]}"
        self._lock = lock
        self._config = config

    @classmethod
    async def open(cls, config: ManagerConfig) -> StateSession:
        """Raises StoreUnavailable, StoreInUse or InvalidStateUrl."""
        if config.state_dir is None:
            store: StateStore = MemoryStore()
            session = cls(store, secrets.token_hex(8), None)
        else:
            owner, lock = await _lock_directory(config, config.state_dir)
            try:
                store = await open_store(config.state_url, config.state_dir)
                owner = owner or await _recover_name(store, config.state_dir)
            except BaseException:
                _release(lock)
                raise
            session = cls(store, owner, lock, config)
        try:
            # The lock proves that the previous holder of the lease is dead.
            is_proven = session._lock is not None
            await store.acquire_lease(session.owner, _LEASE_S, take_over=is_proven, url=config.advertise_url)
        except BaseException:
            await session.close()
            raise
        return session

    @property
    def is_sole(self) -> bool:
        """Whether no other process can have this owner's name, so that anything that carries it is ours."""
        return self._lock is not None

    def new_token(self) -> str:
        """For a new engine process; its prefix identifies the owner."""
        return f"{self.token_prefix}{secrets.token_hex(16)}"

    @property
    def token_prefix(self) -> str:
        return f"{self.owner}."

    async def tend(self) -> None:
        """Restore what was removed: the lock, our name, the folder of status files, the store.

        Raises LeaseLost if another process has taken over, StoreUnavailable if it can't be restored.
        """
        if self._lock is not None:
            await asyncio.to_thread(self._restore_files)
        await self.store.tend()

    def _restore_files(self) -> None:
        if self._lock is None or self._config is None or self._config.state_dir is None:
            return
        state_dir = self._config.state_dir
        try:
            if not self._lock.is_in_place:
                self._lock.take_again()
                logger.error(
                    "files of this Berth in %s were removed while it was running: put back", state_dir
                )
            set_owner_id(state_dir, self.owner)
            self._config.status_path("any").parent.mkdir(parents=True, exist_ok=True)
        except StoreInUse as error:
            raise LeaseLost(str(error)) from error
        except OSError as error:
            raise StoreUnavailable(f"can't write to the state directory {state_dir}: {error}") from error

    async def close(self) -> None:
        """Release the state to the next process."""
        try:
            await self.store.close()
        finally:
            _release(self._lock)


async def _lock_directory(config: ManagerConfig, state_dir: Path) -> tuple[str | None, FileLock | None]:
    """The owner's name, if known, and the lock.

    A directory that can't be written is accepted only if the store keeps nothing.
    """
    lock = FileLock(state_dir / "berth.lock")
    try:
        await asyncio.to_thread(lock.acquire)
        return await asyncio.to_thread(_known_name, config, state_dir), lock
    except StoreUnavailable as error:
        lock.release()
        if not config.state_url.startswith("memory:"):
            raise
        logger.warning("%s; engines that outlive this Berth process can't be recovered", error)
        return secrets.token_hex(8), None
    except BaseException:
        lock.release()
        raise


def _known_name(config: ManagerConfig, state_dir: Path) -> str | None:
    """From the directory, or from an earlier process's engines if the directory was emptied.

    Raises StoreInUse if that process is still alive; it will restore its files.
    """
    try:
        if (name := known_owner_id(state_dir)) is not None:
            return name
    except OSError as error:
        raise StoreUnavailable(f"can't read this node's name in {state_dir}: {error}") from error
    owners = shim_owners(config.status_path("any").parent)
    if not owners:
        return None
    if (holder := process_holding_deleted(state_dir / "berth.lock")) is not None:
        raise StoreInUse(
            f"another Berth process (pid {holder}) uses {state_dir}, whose files were removed: "
            "stop it, or give this one a STATE_DIR of its own"
        )
    name = min(owners)
    logger.error("%s no longer holds this node's name: restored as %s from running engines", state_dir, name)
    set_owner_id(state_dir, name)
    return name


async def _recover_name(store: StateStore, state_dir: Path) -> str:
    """The owner in an existing, unshared store; a new name otherwise."""
    owners = set() if store.is_shared else {record.owner for record in await store.records()}
    if len(owners) == 1:
        await asyncio.to_thread(set_owner_id, state_dir, owners.pop())
    return await asyncio.to_thread(owner_id, state_dir)


def _release(lock: FileLock | None) -> None:
    if lock is not None:
        lock.release()


def _boot_id() -> str | None:
    with suppress(OSError):
        return read_boot_id()
    return None
