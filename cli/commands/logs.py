"""`berth logs`: an engine's output."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cli.completion import complete_names
from cli.errors import CliError, ExitCode, wrong_use
from cli.replicas import ended
from cli.server import Server
from cli.session import Session, with_session
from cli.target import Kind, Target, find, path_of


@with_session
def logs(
    session: Session,
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="An instance's id, or a model", autocompletion=complete_names),
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue with new lines until Ctrl-C")
    ] = False,
    tail: Annotated[
        int, typer.Option("--tail", "-n", min=0, max=100_000, help="Number of lines from the end")
    ] = 100,
) -> None:
    """Show an engine's output."""
    with session.server() as server:
        path = path_of(Kind.INSTANCE, _instance(server, find(server, name))) + "/logs"
        if follow:
            _follow(session, server, path, tail)
            return
        text = server.text(path, tail=tail)
    if session.as_json:
        session.print_json({"lines": text.splitlines()})
    else:
        sys.stdout.write(text)


def register(app: typer.Typer) -> None:
    app.command()(logs)


def _follow(session: Session, server: Server, path: str, tail: int) -> None:
    with server.stream("GET", path, params={"tail": tail, "follow": "true"}) as response:
        for event in server.events(response):
            if session.as_json:
                session.print_json({"line": event.data}, indent=None)
            else:
                sys.stdout.write(event.data + "\n")
                sys.stdout.flush()


def _instance(server: Server, target: Target) -> str:
    """The instance whose log is shown; for an ended model, its last one. Raises CliError."""
    if target.kind is Kind.INSTANCE:
        return target.name
    replicas: list[str] = target.record["replicas"] or ended(server, target)[-1:]
    if not replicas:
        raise CliError(
            f"{target} has no log because it has never been started",
            ExitCode.NOT_FOUND,
            next_step=f"`berth start {target.name}` starts it",
        )
    if len(replicas) > 1:
        raise wrong_use(f"{target} has {len(replicas)} replicas: {', '.join(replicas)}", "name one of them")
    return replicas[0]
