"""The command `berth` as a user runs it: in its own process, with pipes or at a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from tests.berth_process import ROOT

TIMEOUT_S = 40.0
_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07)")
CTRL_C, CTRL_D = "\x03", "\x04"


def environment(url: str, **more: str) -> dict[str, str]:
    """A user's environment, without variables that change what `berth` prints."""
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    return {**kept, "BERTH_PYTHON": sys.executable, "TERM": "xterm", "BERTH_URL": url, **more}


def berth(
    url: str, *args: str, stdin: str | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """One command without a terminal; `stdin` is piped in."""
    return subprocess.run(
        [str(ROOT / "cli" / "berth"), *args],
        env=environment(url, **(env or {})),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


class Terminal:
    """A command at a pseudo-terminal of 200 columns; `screen` is all of its output, without escapes."""

    def __init__(self, url: str, *args: str, **env: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        self._process = subprocess.Popen(
            [str(ROOT / "cli" / "berth"), *args],
            env=environment(url, **env),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=_own_terminal,
        )
        os.close(slave)
        self.raw = ""
        self._seen = 0  # how much of the screen has been matched

    @property
    def screen(self) -> str:
        return _ESCAPES.sub("", self.raw).replace("\r", "")

    def expect(self, text: str) -> None:
        """Read until the text appears after the previous match."""
        deadline = time.monotonic() + TIMEOUT_S
        while (found := self.screen.find(text, self._seen)) < 0:
            assert self._read(deadline), f"{text!r} did not come; what did:\n{self.screen}"
        self._seen = found + len(text)

    def press_until(self, key: str, text: str) -> None:
        """Press a key until the text appears: an editor that has just shown its prompt may miss a signal."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.screen.find(text, self._seen) < 0:
            assert time.monotonic() < deadline, f"{text!r} did not come; what did:\n{self.screen}"
            self.type(key)
            self._read(time.monotonic() + 0.5)
        self.expect(text)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> int:
        """Press Ctrl-C until the command exits, as in `press_until`; the exit status."""
        deadline = time.monotonic() + TIMEOUT_S
        while self._process.poll() is None:
            assert time.monotonic() < deadline, f"it doesn't end; what came:\n{self.screen}"
            with suppress(OSError):
                self.type(CTRL_C)
            self._read(time.monotonic() + 0.5)
        status = self.wait()
        return 130 if status == -signal.SIGINT else status  # a shell reports both alike

    def wait(self) -> int:
        """The exit status, once all has been read."""
        deadline = time.monotonic() + TIMEOUT_S
        while self._read(deadline):
            pass
        return self._process.wait(TIMEOUT_S)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._master)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # on Linux instead of an end of file
            return False
        self.raw += piece.decode("utf-8", "replace")
        return bool(piece)


def _own_terminal() -> None:
    """Its own session with this terminal, so that Ctrl-C reaches it alone."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def terminal(url: str, *args: str, **env: str) -> Iterator[Terminal]:
    """A command at a terminal; ended with the block."""
    running = Terminal(url, *args, **env)
    try:
        yield running
    finally:
        running.close()
