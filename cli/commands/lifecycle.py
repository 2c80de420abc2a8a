"""`berth start | stop | restart | sleep | wake`, for a model (all its replicas) or one instance."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from cli.completion import complete_names
from cli.errors import CliError, ExitCode, wrong_use
from cli.replicas import latest
from cli.server import Server
from cli.session import Session, with_session
from cli.startup import following
from cli.tables import Record
from cli.target import Target, find, state_of

_LONGEST_S = 3600.0  # the server's longest wait for a start
_GRACE_S = 30.0  # for its response after that
_UP = frozenset({"running"})
STARTING = frozenset({"starting", "health_checking", "waking"})
_LOG_LINES = 10
_UNLOAD = "/api/models/unload"  # of all models
_FAILED = "instance_failed"  # the code of errors

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A model, or an instance's id", autocompletion=complete_names)
]
OptionalName = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="A model, or an instance's id", autocompletion=complete_names),
]
Wait = Annotated[
    float, typer.Option(min=0, max=_LONGEST_S, help="Seconds to wait until it runs; 0 = don't wait")
]


@with_session
def start(session: Session, name: Name, wait: Wait = 600) -> None:
    """Start a model, or an ended instance."""
    bring_up(session, name, "start", timeout_s=wait + _GRACE_S, wait=wait)


@with_session
def restart(session: Session, name: Name, wait: Wait = 600) -> None:
    """Stop and start a model or an instance."""
    bring_up(session, name, "restart", timeout_s=wait + _LONGEST_S, wait=wait)


@with_session
def stop(
    session: Session,
    name: OptionalName = None,
    all_models: Annotated[bool, typer.Option("--all", "-a", help="Stop all models")] = False,
    force: Annotated[bool, typer.Option("--force", help="Don't wait for requests in flight")] = False,
) -> None:
    """Stop a model or an instance, or all models.

    Requests in flight are completed first. The next request for a model starts it again. A failed model or
    instance becomes stopped, and its next start is no longer delayed.
    """
    if all_models is (name is not None):
        given = "NAME and --all exclude each other" if all_models else "NAME or --all is missing"
        raise wrong_use(given, "`berth stop --help` explains both")
    if name is not None:
        _act(session, name, "stop", force=force or None)
        return
    with session.server() as server, session.waiting("stop all models"):
        answer = server.request("POST", _UNLOAD, params={"force": force or None}, timeout_s=_LONGEST_S)
    if session.as_json:
        session.print_json(answer)
    else:
        session.say("all models are stopped")


@with_session
def sleep(
    session: Session,
    name: Name,
    level: Annotated[
        int, typer.Option(min=1, max=3, help="1 = free the KV cache, 2 = also the weights, 3 = stop")
    ] = 1,
) -> None:
    """Put a model or an instance to sleep.

    This frees its memory; the next request wakes it.
    """
    _act(session, name, "sleep", level=level)


@with_session
def wake(session: Session, name: Name) -> None:
    """Wake a sleeping model or instance."""
    bring_up(session, name, "wake", timeout_s=_LONGEST_S)


def register(app: typer.Typer) -> None:
    for command in (start, stop, restart, sleep, wake):
        app.command()(command)


def _act(session: Session, name: str, verb: str, **params: Any) -> None:
    with session.server() as server:
        target = find(server, name)
        with session.waiting(f"{verb} {target.name}"):
            record = server.request("POST", f"{target.path}/{verb}", params=params, timeout_s=_LONGEST_S)
    if session.as_json:
        session.print_json(record)
    else:
        session.say(f"{target} is {state_of(record)}")


def bring_up(session: Session, name: str, verb: str, *, timeout_s: float, **params: Any) -> None:
    """Wait until it runs, and print the outcome and the log's path."""
    with session.server() as server:
        target = find(server, name)
        began = time.monotonic()
        try:
            with following(session, target, verb) as seen:
                record = server.request("POST", f"{target.path}/{verb}", params=params, timeout_s=timeout_s)
        except CliError as exc:
            raise (_explained(server, target, exc) if exc.code == _FAILED else exc) from None
        if session.as_json:
            session.print_json(record)
            return
        instance = latest(server, target)
        session.say(_outcome(target, record, instance, time.monotonic() - began))
        if instance is not None and not seen.log_path:
            session.say(f"log: {instance['log_path']}")


def _outcome(target: Target, record: Record, instance: Record | None, took_s: float) -> str:
    """The outcome in one line."""
    line = f"{target} is {state_of(record)}"
    if state_of(record) in _UP:
        where = f" on port {instance['port']}" if instance is not None else ""
        return f"{line}{where} ({took_s:.1f} s)"
    if state_of(record) in STARTING:
        return f"{line}; `berth ps --watch` shows its progress"
    return line


def _explained(server: Server, target: Target, exc: CliError) -> CliError:
    """The error with the failure's reason and the log's last lines, if available."""
    try:
        instance = latest(server, target)
    except CliError:
        return exc
    error = None if instance is None else instance["error"]
    if instance is None or not error or not error["log_tail"]:
        return exc
    return CliError(
        f"{target} failed to start: {error['message']}",
        ExitCode.REFUSED,
        error=exc.envelope["error"],
        details=[*error["log_tail"][-_LOG_LINES:], f"log: {instance['log_path']}"],
    )
