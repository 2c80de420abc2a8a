"""Other names of commands: aliases, and names from other tools, for which the right one is suggested."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typer.core import TyperGroup

from cli.errors import wrong_use

ALIASES: Mapping[str, str] = {"ls": "list", "status": "ps", "up": "serve"}
_SUGGESTED: Mapping[str, str] = {
    "ask": "run",
    "benchmark": "bench",
    "chat": "run",
    "delete": "rm",
    "down": "stop",
    "download": "pull",
    "generate": "run",
    "kill": "stop",
    "load": "start",
    "models": "list",
    "offload": "sleep",
    "remove": "rm",
    "server": "serve",
    "set": "assign",
    "tail": "logs",
    "unload": "stop",
    "update": "assign",
    "wait": "start",
}


class Commands(TyperGroup):
    """Also finds commands by their aliases."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, ALIASES.get(cmd_name, cmd_name))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in _SUGGESTED and args[0] not in self.commands:
            raise wrong_use(f"no such command {args[0]!r}", f"did you mean `berth {_SUGGESTED[args[0]]}`?")
        return super().resolve_command(ctx, args)
