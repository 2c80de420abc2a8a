"""Shows the progress of a start at a terminal while a command waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cli.errors import CliError
from cli.replicas import latest
from cli.server import Server
from cli.session import Session
from cli.tables import printable
from cli.target import Target

_POLL_INTERVAL_S = 0.5
_SPINNER = 3  # columns


@dataclass(slots=True)
class Seen:
    """What has been shown so far."""

    log_path: str | None = None
    began: float = field(default_factory=time.monotonic)


@contextmanager
def following(session: Session, target: Target, verb: str) -> Iterator[Seen]:
    """While the block waits, show state, elapsed time and the log's last line; once, the log's path."""
    seen, over = Seen(), threading.Event()
    with session.waiting(f"{verb} {target.name}") as show:
        watcher = None
        if session.err.is_terminal and not session.as_json:
            arguments = (session, target, verb, seen, show, over)
            watcher = threading.Thread(target=_watch, args=arguments, daemon=True)
            watcher.start()
        try:
            yield seen
        finally:
            over.set()
            if watcher is not None:
                watcher.join(_POLL_INTERVAL_S)


def _watch(
    session: Session,
    target: Target,
    verb: str,
    seen: Seen,
    show: Callable[[str], None],
    over: threading.Event,
) -> None:
    """Errors are left to the waiting request."""
    with session.server() as server:
        while not over.wait(_POLL_INTERVAL_S):
            try:
                _poll(session, server, target, verb, seen, show)
            except CliError:
                continue


def _poll(
    session: Session, server: Server, target: Target, verb: str, seen: Seen, show: Callable[[str], None]
) -> None:
    instance = latest(server, target)
    took_s = time.monotonic() - seen.began
    if instance is None or instance["status"] in ("stopped", "failed"):
        show(f"{verb} {target.name} … {took_s:.0f} s")  # it waits for memory
        return
    if seen.log_path is None:
        seen.log_path = instance["log_path"]
        session.remark(f"log: {seen.log_path}")
    line = server.text(f"/instances/{instance['instance_id']}/logs", tail=1).strip()
    shown = f"{verb} {target.name} … {instance['status']}, {took_s:.0f} s{': ' * bool(line)}{printable(line)}"
    show(shown[: session.err.width - _SPINNER])
