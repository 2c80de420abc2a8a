"""Names for the shell's completion, asked of Berth. Nobody waits long for them, and nothing is ever said."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import typer

from cli.errors import CliError
from cli.server import Server
from cli.session import DEFAULT_URL
from cli.target import MODELS_PATH, unless_not_admin

_TIMEOUT_S = 0.8


def complete_models(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names and aliases of models."""
    return _matching(ctx, incomplete, ("/models",))


def complete_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names and aliases of models, and ids of instances."""
    return _matching(ctx, incomplete, ("/models", "/instances?all=true"))


def _matching(ctx: typer.Context, incomplete: str, paths: tuple[str, ...]) -> list[str]:
    found: set[str] = set()
    try:
        with _server(ctx) as server:
            for path in paths:
                answer = unless_not_admin(partial(server.get, path, timeout_s=_TIMEOUT_S))
                if answer is None:
                    answer = server.get(MODELS_PATH, timeout_s=_TIMEOUT_S)
                for record in answer["data"]:
                    found.update(_names(record))
    except (CliError, LookupError, TypeError):
        pass  # names found so far are still useful
    return sorted(name for name in found if name.startswith(incomplete))


def _server(ctx: typer.Context) -> Server:
    given = ctx.find_root().params | {key: value for key, value in ctx.params.items() if value}
    url = given.get("url") or os.environ.get("BERTH_URL") or DEFAULT_URL
    return Server(url, given.get("api_key") or os.environ.get("BERTH_API_KEY"))


def _names(record: dict[str, Any]) -> list[str]:
    name = record.get("name") or record.get("instance_id") or record["id"]
    return [name, *record.get("aliases", [])]
