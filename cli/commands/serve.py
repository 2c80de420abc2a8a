"""`berth serve` and `berth config check`: replace this process with the server, or with its check."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.service import become_service
from cli.session import Json

_PASS_ON = {"ignore_unknown_options": True}  # app.py parses its flags and reports unknown ones

Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="--SETTING VALUE",
        help="Settings, e.g. --port 5001 --log-file berth.log",
        show_default=False,
    ),
]


def serve(ctx: typer.Context, settings: Settings = None, as_json: Json = False) -> None:
    """Run the server, as `make serve` does.

    Ctrl-C stops it; a second Ctrl-C cuts off requests in flight. Each setting is a flag (--host, --port,
    --models-file …) and overrides the environment and .env; docs/settings.md lists them. --json logs in
    JSON. Runs in Berth's own folder and thus reads the .env there.
    """
    become_service([*(["--log-format", "json"] if _is_json(ctx, as_json) else []), *(settings or ())])


def check(ctx: typer.Context, settings: Settings = None, as_json: Json = False) -> None:
    """Check the settings and models.yaml without serving.

    Exit status: 0 if there are no mistakes, else 1. Accepts the same settings as `berth serve`.
    """
    become_service(["--check", *(["--json"] if _is_json(ctx, as_json) else []), *(settings or ())])


def register(app: typer.Typer) -> None:
    app.command(context_settings=_PASS_ON)(serve)
    config = typer.Typer(help="Check the settings.", no_args_is_help=True, rich_markup_mode=None)
    config.command(context_settings=_PASS_ON)(check)
    config.callback()(lambda: None)  # makes it a group, although it has only one command
    app.add_typer(config, name="config")


def _is_json(ctx: typer.Context, as_json: bool) -> bool:
    """--json is also allowed before the command."""
    return as_json or bool(ctx.find_root().params.get("as_json"))
