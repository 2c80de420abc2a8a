"""`berth ps | list | show | info`: instances, models and the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.completion import complete_names
from cli.errors import CliError
from cli.server import Server
from cli.session import Session, with_session
from cli.tables import (
    INSTANCE_COLUMNS,
    Record,
    details,
    entry_table,
    instance_row,
    model_status,
    model_table,
    table,
)
from cli.target import MODELS_PATH, record_for, unless_not_admin

if TYPE_CHECKING:
    from rich.text import Text

_RECONNECT_S = 2.0
_UP = frozenset({"running", "starting", "sleeping"})


@with_session
def ps(
    session: Session,
    include_ended: Annotated[
        bool, typer.Option("--all", "-a", help="Include stopped and failed ones")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing until Ctrl-C")] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, help="Seconds between updates with --watch; changes show at once")
    ] = 2.0,
) -> None:
    """List running instances.

    With an API key that only allows requests, list the running models instead.
    """
    with session.server() as server:
        if watch:
            _watch(session, server, include_ended, interval)
            return
        answer = unless_not_admin(lambda: _instances(server, include_ended))
        if answer is None:
            _print_entries(session, server, is_shown=lambda one: include_ended or one["state"] in _UP)
        elif session.as_json:
            session.print_json(answer)
        else:
            session.say(_instance_table(session, answer["data"]))


@with_session
def list_models(session: Session) -> None:
    """List the available models.

    With an API key that only allows requests, list the models that the key may use.
    """
    with session.server() as server:
        answer = unless_not_admin(lambda: server.get("/models"))
        if answer is None or not answer["data"] or _is_for_requests(answer["data"][0]):
            _print_entries(session, server)  # which has aliases, and other nodes' models
            return
    if session.as_json:
        session.print_json(answer)
    elif answer["data"] and "pinned" not in answer["data"][0]:  # not Berth: a list in OpenAI's form
        session.say(entry_table(answer["data"], session.out.width))
    else:
        session.say(model_table(answer["data"], time.time(), session.out.width))


def _is_for_requests(record: Record) -> bool:
    """Whether it is what Berth shows to a key for requests."""
    return "state" in record and "pinned" not in record


@with_session
def show(
    session: Session,
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A model, or an instance's id", autocompletion=complete_names),
    ],
) -> None:
    """Show all details of a model or an instance."""
    with session.server() as server:
        _print_record(session, record_for(server, name))


@with_session
def info(session: Session) -> None:
    """Show information on the server: version, platform, limits."""
    with session.server() as server:
        _print_record(session, {"url": server.url, **server.get("/info")})


def register(app: typer.Typer) -> None:
    app.command()(ps)
    app.command("list")(list_models)
    app.command()(show)
    app.command()(info)


def _print_record(session: Session, record: Record) -> None:
    if session.as_json:
        session.print_json(record)
        return
    is_model = "state" in record and "problem" in record
    session.say(details({**record, "state": model_status(record)} if is_model else record))


def _print_entries(
    session: Session, server: Server, is_shown: Callable[[Record], bool] = lambda _: True
) -> None:
    """Print `/v1/models`, which is all that a key for requests may read."""
    answer = server.get(MODELS_PATH)
    answer["data"] = [one for one in answer["data"] if is_shown(one)]
    if session.as_json:
        session.print_json(answer)
    else:
        session.say(entry_table(answer["data"], session.out.width))


def _instances(server: Server, include_ended: bool) -> dict[str, Any]:
    answer: dict[str, Any] = server.get("/instances", all="true" if include_ended else None)
    return answer


def _instance_table(session: Session, records: list[Record]) -> Text:
    now = time.time()
    return table(INSTANCE_COLUMNS, (instance_row(one, now) for one in records), session.out.width)


def _watch(session: Session, server: Server, include_ended: bool, interval_s: float) -> None:
    """A table that is kept up to date; without a terminal one after another; with --json NDJSON."""
    snapshots = _snapshots(session, server, include_ended, interval_s)
    if session.as_json:
        for answer in snapshots:
            session.print_json(answer, indent=None)
        return
    if not session.out.is_terminal:
        for answer in snapshots:
            session.say(_instance_table(session, answer["data"]))
        return
    from rich.live import Live

    with Live(console=session.out, auto_refresh=False, vertical_overflow="crop") as live:
        for answer in snapshots:
            live.update(_instance_table(session, answer["data"]), refresh=True)


def _snapshots(
    session: Session, server: Server, include_ended: bool, interval_s: float
) -> Iterator[dict[str, Any]]:
    """The instances at every event, and every `interval_s` for changes without events: memory, load, age."""
    changed = threading.Event()
    threading.Thread(target=_follow_events, args=(session, changed), daemon=True).start()
    while True:
        changed.clear()
        yield _instances(server, include_ended)
        changed.wait(interval_s)


def _follow_events(session: Session, changed: threading.Event) -> None:
    """Sets `changed` at every event. Errors are left to the other connection."""
    while True:
        try:
            with session.server() as server, server.stream("GET", "/events") as response:
                for _ in server.events(response):
                    changed.set()
        except CliError:
            pass
        time.sleep(_RECONNECT_S)
