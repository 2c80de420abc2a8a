"""`berth serve` and `berth config check`: become the server, or only what looks at its settings."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.service import become_service
from cli.session import Json

_PASS_ON = {"ignore_unknown_options": True}  # app.py knows its flags, and says what it doesn't know

Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="--SETTING VALUE",
        help="Settings, as in --port 5001 --log-file berth.log",
        show_default=False,
    ),
]


def serve(ctx: typer.Context, settings: Settings = None, as_json: Json = False) -> None:
    """Serve, as `make serve` does.

    Until Ctrl-C; a second one waits for no request. Each setting is a flag (--host, --port, --models-file …)
    and wins over the environment and .env; docs/settings.md lists them. --json: logs in JSON. Runs in
    Berth's own folder, so settings come from the .env there.
    """
    become_service([*(["--log-format", "json"] if _is_json(ctx, as_json) else []), *(settings or ())])


def check(ctx: typer.Context, settings: Settings = None, as_json: Json = False) -> None:
    """Tell what is wrong with the settings and models.yaml; serve nothing.

    Exit status: 0 where nothing is wrong, else 1. Takes the settings that `berth serve` takes.
    """
    become_service(["--check", *(["--json"] if _is_json(ctx, as_json) else []), *(settings or ())])


def register(app: typer.Typer) -> None:
    app.command(context_settings=_PASS_ON)(serve)
    config = typer.Typer(help="Look at the settings.", no_args_is_help=True, rich_markup_mode=None)
    config.command(context_settings=_PASS_ON)(check)
    config.callback()(lambda: None)  # a group, although it has one command
    app.add_typer(config, name="config")


def _is_json(ctx: typer.Context, as_json: bool) -> bool:
    """--json may stand before the command, too."""
    return as_json or bool(ctx.find_root().params.get("as_json"))
