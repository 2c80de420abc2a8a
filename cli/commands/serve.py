"""`berth serve`: become the server."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import wrong_use
from cli.session import Session, with_session

_ROOT = Path(__file__).resolve().parent.parent.parent


@with_session
def serve(
    session: Session,
    host: Annotated[str | None, typer.Option(help="Address to listen on, in place of APP_HOST")] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on, in place of APP_PORT")
    ] = None,
) -> None:
    """Serve, as `make serve` does.

    Until Ctrl-C; a second one waits for no request. --json: logs in JSON. Runs in Berth's own folder,
    so settings come from the .env there.
    """
    main = _ROOT / "app.py"
    if not main.is_file():
        raise wrong_use(f"there is no {main}", "run `berth serve` from a checkout of Berth")
    given = {"APP_HOST": host, "APP_PORT": port, "LOG_FORMAT": "json" if session.as_json else None}
    environment = os.environ | {key: str(value) for key, value in given.items() if value is not None}
    os.chdir(_ROOT)
    os.execve(sys.executable, [sys.executable, str(main)], environment)  # noqa: S606 - no shell is the point


def register(app: typer.Typer) -> None:
    app.command()(serve)
