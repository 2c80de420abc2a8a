"""`berth start | stop | restart | sleep | wake`, of a model (all its replicas) or of one instance."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from cli.completion import complete_names
from cli.session import Session, with_session
from cli.tables import Record
from cli.target import Kind, Target, find

_LONGEST_S = 3600.0  # that the server waits for a start
_GRACE_S = 30.0  # for its answer after that
_UP = frozenset({"running"})

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A model, or an instance's id", autocompletion=complete_names)
]
Wait = Annotated[
    float, typer.Option(min=0, max=_LONGEST_S, help="Seconds to wait until it runs; 0: don't wait")
]


@with_session
def start(session: Session, name: Name, wait: Wait = 600) -> None:
    """Start a model, or an instance that has ended."""
    _act(session, name, "start", timeout_s=wait + _GRACE_S, wait=wait)


@with_session
def restart(session: Session, name: Name, wait: Wait = 600) -> None:
    """Stop and start again."""
    _act(session, name, "restart", timeout_s=wait + _LONGEST_S, wait=wait)


@with_session
def stop(
    session: Session,
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Don't wait for requests in flight")] = False,
) -> None:
    """Stop a model or an instance.

    Requests in flight are answered first. The next request for a model starts it again.
    """
    _act(session, name, "stop", timeout_s=_LONGEST_S, force=force or None)


@with_session
def sleep(
    session: Session,
    name: Name,
    level: Annotated[
        int, typer.Option(min=1, max=2, help="1 gives the KV cache's memory back, 2 the weights' too")
    ] = 1,
) -> None:
    """Give memory back; the next request wakes it."""
    _act(session, name, "sleep", timeout_s=_LONGEST_S, level=level)


@with_session
def wake(session: Session, name: Name) -> None:
    """Take the memory back and serve."""
    _act(session, name, "wake", timeout_s=_LONGEST_S)


def register(app: typer.Typer) -> None:
    for command in (start, stop, restart, sleep, wake):
        app.command()(command)


def _act(session: Session, name: str, verb: str, *, timeout_s: float, **params: Any) -> None:
    with session.server() as server:
        target = find(server, name)
        began = time.monotonic()
        with _waiting(session, f"{verb} {target.name}"):
            record = server.request("POST", f"{target.path}/{verb}", params=params, timeout_s=timeout_s)
    if session.as_json:
        session.print_json(record)
    else:
        session.out.print(_outcome(target, record, time.monotonic() - began))


def _outcome(target: Target, record: Record, took_s: float) -> str:
    """What it has come to, in a line."""
    line = f"{target} is {record['status']}"
    if record["status"] in _UP:
        where = f" on port {record['port']}" if target.kind is Kind.INSTANCE else ""
        return f"{line}{where} ({took_s:.1f} s)"
    if record["status"] in ("starting", "health_checking", "waking"):
        return f"{line}; `berth ps --watch` follows it"
    return line


@contextmanager
def _waiting(session: Session, what: str) -> Iterator[None]:
    """A sign of life on standard error, where somebody looks at it."""
    if session.as_json or not session.err.is_terminal:
        yield
        return
    with session.err.status(f"{what} …"):
        yield
