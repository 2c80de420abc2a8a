"""The engine's side of the compiler's first process: starts it, and has it fork and end others."""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from engine.errors import EngineError
from engine.structured.wire import COMMAND, KILL, LENGTH, SPAWN

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Fork:
    """One process of a grammar, as far as it can be ended from outside."""

    def __init__(self, first: _First, number: int) -> None:
        self._first = first
        self._number = number

    def kill(self) -> None:
        self._first.send(KILL, self._number)

    @property
    def has_parent(self) -> bool:
        """Without one it has ended, whatever it did."""
        return self._first.is_alive


class Workers:
    """Starts the first process when a fork is wanted, and again if it has ended. Blocks for moments."""

    def __init__(self, make_vocabulary: Callable[[], bytes]) -> None:
        self._make_vocabulary = make_vocabulary
        self._first: _First | None = None
        self._lock = threading.Lock()
        self._num_forks = 0

    def fork(self, link: socket.socket, masks: int) -> Fork:
        """A process that has these two descriptors. Raises EngineError if none can be started."""
        with self._lock:
            if self._first is None or not self._first.is_alive:
                try:
                    self._first = _First(self._make_vocabulary())
                except OSError as error:
                    raise EngineError(f"The compiler's process can't be started: {error}.") from error
            self._num_forks += 1
            self._first.send(SPAWN, self._num_forks, link.fileno(), masks)
            return Fork(self._first, self._num_forks)

    @property
    def is_alive(self) -> bool:
        first = self._first
        return first is not None and first.is_alive

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            if self._first is not None:
                self._first.close()
                self._first = None


class _First:
    def __init__(self, vocabulary: bytes) -> None:
        self._link, theirs = socket.socketpair()
        with theirs:
            root = str(Path(__file__).parents[2])
            path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "engine.structured.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **_ONE_THREAD, "PYTHONPATH": path},
            )
        self.close = weakref.finalize(self, _end, self._link, self._process)
        self._lock = threading.Lock()
        with suppress(OSError):  # it has ended, which is found below
            self._link.sendall(LENGTH.pack(len(vocabulary)) + vocabulary)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, command: bytes, number: int, *descriptors: int) -> None:
        rights = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        with self._lock, suppress(OSError):  # it has ended, and all others with it
            self._link.sendmsg([COMMAND.pack(command, number)], rights)


def _end(link: socket.socket, process: subprocess.Popen[bytes]) -> None:
    link.close()
    process.kill()
    process.wait()


def shared_memory(num_bytes: int) -> int:
    """A descriptor of memory that has no name, all zero and taken page by page as it is written."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("masks")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, num_bytes)
    return descriptor
