"""One Berth process per state directory: a lock that the kernel releases whenever its holder dies."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from instance_manager.state.stores.errors import StoreInUse, StoreUnavailable

_SIGNATURE = re.compile(rb"\d+ Berth inode=(\d+)\n")


def signed_inode(path: Path) -> int | None:
    """The database file (inode) that the last holder of this lock noted in it; None if none."""
    try:
        with path.open("rb") as file:
            found = _SIGNATURE.fullmatch(file.read(64))
    except OSError:
        return None
    return None if found is None else int(found[1])


class FileLock:
    """Held from `acquire` to `release`. Holding it proves that no other process uses this directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock without waiting. Raises StoreInUse if it is held, and StoreUnavailable."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise StoreUnavailable(f"can't write to the state directory {self._path.parent}: {exc}") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = re.match(rb"\d+", os.read(fd, 32))
            os.close(fd)
            pid = holder[0].decode() if holder else "unknown"
            raise StoreInUse(
                f"another Berth process (pid {pid}) uses {self._path.parent}: "
                "stop it, or give this one a STATE_DIR of its own"
            ) from None
        except OSError as exc:
            os.close(fd)
            raise StoreUnavailable(f"can't lock {self._path}: {exc}") from exc
        self._fd = fd
        self.sign(signed_inode(self._path))

    @property
    def is_in_place(self) -> bool:
        """Whether the next process would find the lock: its file is still in place."""
        if self._fd is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._fd), self._path.stat())
        except OSError:
            return False

    def take_again(self) -> None:
        """Lock the file again after it was removed or replaced. Raises as `acquire` does."""
        before = self._fd
        self.acquire()
        if before is not None:
            os.close(before)

    def release(self) -> None:
        """The file stays: removing it would race with a process that opens it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def sign(self, inode: int | None) -> None:
        """Write our pid, for people, and the database's inode, which identifies it even when damaged.

        On a full disk, the lock works without.
        """
        if self._fd is None:
            return
        text = f"{os.getpid()}\n" if inode is None else f"{os.getpid()} Berth inode={inode}\n"
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text.encode("ascii"), 0)
        except OSError:
            return
