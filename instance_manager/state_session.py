"""This Berth's hold on its state: a directory that is its alone, its name, its store and its lease there."""

from __future__ import annotations

import asyncio
import logging
import platform
import secrets
from contextlib import suppress
from pathlib import Path

from instance_manager.shim import read_boot_id
from instance_manager.stores.base import StateStore
from instance_manager.stores.errors import LeaseLost, StoreInUse, StoreUnavailable
from instance_manager.stores.lock import FileLock
from instance_manager.stores.memory import MemoryStore
from instance_manager.stores.open import open_store, owner_id, set_owner_id
from instance_manager.types import ManagerConfig

logger = logging.getLogger("berth.state")

_LEASE_S = (
    10.0  # that others wait until they take us for dead; where the store is shared, it renews by itself
)


class StateSession:
    """Made by `open`, given back by `close`."""

    def __init__(
        self, store: StateStore, owner: str, lock: FileLock | None, config: ManagerConfig | None = None
    ) -> None:
        self.store = store
        self.owner = owner  # the same after every restart in the same STATE_DIR
        self.boot_id = _boot_id()  # None = none is known here, and no pid is worth anything after a restart
        # Whose ports are held. Machines may have the same name, containers of one machine have its boot id.
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
            owner, lock = await _settle(config.state_dir, is_kept=not config.state_url.startswith("memory:"))
            try:
                store = await open_store(config.state_url, config.state_dir)
            except BaseException:
                _release(lock)
                raise
            session = cls(store, owner, lock, config)
        try:
            # The lock proves that who had the lease before us is dead.
            is_proven = session._lock is not None
            await store.acquire_lease(session.owner, _LEASE_S, take_over=is_proven, url=config.advertise_url)
        except BaseException:
            await session.close()
            raise
        return session

    @property
    def is_sole(self) -> bool:
        """Whether no other Berth can have this owner's name, so that what carries it is ours."""
        return self._lock is not None

    def new_token(self) -> str:
        """For a new process; it says whose it is."""
        return f"{self.token_prefix}{secrets.token_hex(16)}"

    @property
    def token_prefix(self) -> str:
        return f"{self.owner}."

    async def tend(self) -> None:
        """Put back what somebody has removed: the lock, our name, the folder of status files, the store.

        Raises LeaseLost where another Berth has taken the place, StoreUnavailable where it can't be put back.
        """
        if self._lock is not None:
            await asyncio.to_thread(self._put_back)
        await self.store.tend()

    def _put_back(self) -> None:
        if self._lock is None or self._config is None or self._config.state_dir is None:
            return
        state_dir = self._config.state_dir
        try:
            if not self._lock.is_in_place:
                self._lock.take_again()
                logger.error("the files of this Berth in %s were removed while it runs: put back", state_dir)
            set_owner_id(state_dir, self.owner)
            self._config.status_path("any").parent.mkdir(parents=True, exist_ok=True)
        except StoreInUse as error:
            raise LeaseLost(str(error)) from error
        except OSError as error:
            raise StoreUnavailable(f"can't write to the state directory {state_dir}: {error}") from error

    async def close(self) -> None:
        """Let the next one in."""
        try:
            await self.store.close()
        finally:
            _release(self._lock)


async def _settle(state_dir: Path, *, is_kept: bool) -> tuple[str, FileLock | None]:
    """The owner's name and the lock; without a directory that can be written to, only if nothing is kept."""
    lock = FileLock(state_dir / "berth.lock")
    try:
        await asyncio.to_thread(lock.acquire)
        return await asyncio.to_thread(owner_id, state_dir), lock
    except StoreUnavailable as error:
        lock.release()
        if is_kept:
            raise
        logger.warning("%s; engines that outlive this Berth won't be known again", error)
        return secrets.token_hex(8), None


def _release(lock: FileLock | None) -> None:
    if lock is not None:
        lock.release()


def _boot_id() -> str | None:
    with suppress(OSError):
        return read_boot_id()
    return None
