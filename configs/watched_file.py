"""Notices changes of a file that people edit, once they are complete."""

from __future__ import annotations

import time
from pathlib import Path

_SETTLE_S = 0.1
_MOST_WAITS = 20

Stamp = tuple[int, int, int]


class WatchedFile:
    """Remembers the file as last read. A file that doesn't exist is a state like any other."""

    def __init__(self, path: Path, settle_s: float = _SETTLE_S, most_waits: int = _MOST_WAITS) -> None:
        self._path = path
        self._settle_s = settle_s
        self._most_waits = most_waits
        self.mark_read()

    def mark_read(self) -> None:
        """Call this before reading the file, so that a change in the meantime is noticed later."""
        self._read = self._stamp()

    def has_changed(self) -> bool:
        """Whether it has changed since it was read. Blocks while the change goes on, for 2 s at most.

        An editor may empty the file and write it in several steps: in between it would be read as a file
        without entries.
        """
        stamp = self._stamp()
        if stamp == self._read:
            return False
        for _ in range(self._most_waits):
            time.sleep(self._settle_s)
            before, stamp = stamp, self._stamp()
            if stamp == before:
                break
        return stamp != self._read

    def _stamp(self) -> Stamp | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
