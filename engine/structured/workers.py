"""The engine's side of the fork server: starts it, and has it fork and kill the grammars' processes."""

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
    """A handle to kill one grammar's process."""

    def __init__(self, server: _ForkServer, number: int) -> None:
        self._server = server
        self._number = number

    def kill(self) -> None:
        self._server.send(KILL, self._number)

    @property
    def has_parent(self) -> bool:
        """Whether the fork server is alive; all processes end with it."""
        return self._server.is_alive


class Workers:
    """Starts the fork server when a fork is needed, and again if it has ended. Blocks briefly."""

    def __init__(self, make_vocabulary: Callable[[], bytes]) -> None:
        self._make_vocabulary = make_vocabulary
        self._server: _ForkServer | None = None
        self._lock = threading.Lock()
        self._num_forks = 0

    def fork(self, link: socket.socket, masks: int) -> Fork:
        """Fork a process that gets these two descriptors. Raises EngineError if none can be started."""
        with self._lock:
            if self._server is None or not self._server.is_alive:
                try:
                    self._server = _ForkServer(self._make_vocabulary())
                except OSError as error:
                    raise EngineError(f"The compiler's process can't be started: {error}.") from error
            self._num_forks += 1
            self._server.send(SPAWN, self._num_forks, link.fileno(), masks)
            return Fork(self._server, self._num_forks)

    @property
    def is_alive(self) -> bool:
        server = self._server
        return server is not None and server.is_alive

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            if self._server is not None:
                self._server.close()
                self._server = None


class _ForkServer:
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
        with suppress(OSError):  # it has ended, which `is_alive` reports
            self._link.sendall(LENGTH.pack(len(vocabulary)) + vocabulary)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, command: bytes, number: int, *descriptors: int) -> None:
        rights = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        with self._lock, suppress(OSError):  # it has ended, and its children with it
            self._link.sendmsg([COMMAND.pack(command, number)], rights)


def _end(link: socket.socket, process: subprocess.Popen[bytes]) -> None:
    link.close()
    process.kill()
    process.wait()


def shared_memory(num_bytes: int) -> int:
    """A descriptor of anonymous memory, zeroed, and allocated page by page as it is written."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("masks")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, num_bytes)
    return descriptor
