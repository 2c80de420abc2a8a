"""`berth help | version`: information on the command line itself."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import VERSION
from cli.errors import CliError
from cli.session import Session, with_session

_TIMEOUT_S = 2.0


def show_help(
    ctx: typer.Context,
    command: Annotated[str | None, typer.Argument(metavar="COMMAND", help="Command to show help for")] = None,
) -> None:
    """List the commands, or one command's options."""
    root = ctx.find_root()
    if command is None:
        typer.echo(root.get_help())
        return
    name, found, _ = root.command.resolve_command(root, [command])  # type: ignore[attr-defined]  # a group
    typer.echo(found.get_help(type(ctx)(found, info_name=name, parent=root)))


@with_session
def version(session: Session) -> None:
    """Show the versions of this command line and of the server."""
    served: str | None = None
    try:
        with session.server() as server:
            served = server.get("/version", timeout_s=_TIMEOUT_S)["version"]
    except CliError as exc:
        note = exc.line
    if session.as_json:
        session.print_json({"version": VERSION, "url": session.url, "server": served})
        return
    session.say(f"berth {VERSION}")
    session.say(f"{session.url}: {f'Berth {served}' if served else note}")


def register(app: typer.Typer) -> None:
    app.command("help")(show_help)
    app.command()(version)
