"""One Berth per state directory: a lock that the kernel gives back when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from instance_manager.stores.errors import StoreInUse, StoreUnavailable


class FileLock:
    """Held from `acquire` to `release`. To hold it proves that no earlier Berth lives in this directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock at once. Raises StoreInUse if it is held, StoreUnavailable if there can be none."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise StoreUnavailable(f"can't write to the state directory {self._path.parent}: {exc}") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 32).decode("ascii", "replace").strip()
            os.close(fd)
            raise StoreInUse(
                f"another Berth (pid {holder or 'unknown'}) works in {self._path.parent}: "
                "stop it, or give this one a STATE_DIR of its own"
            ) from None
        except OSError as exc:
            os.close(fd)
            raise StoreUnavailable(f"can't lock {self._path}: {exc}") from exc
        self._fd = fd
        self._sign(fd)

    def release(self) -> None:
        """Let the next one in. The file stays: to remove it would race with who opens it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @staticmethod
    def _sign(fd: int) -> None:
        """Write our pid for people to read; on a full disk the lock holds without it."""
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)
        except OSError:
            return
