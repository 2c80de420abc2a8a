"""`berth assign | rm | reload`: the models and their settings."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from cli.commands.lifecycle import COMING, bring_up
from cli.completion import complete_models, complete_names
from cli.errors import CliError, ExitCode, wrong_use
from cli.session import Session, with_session
from cli.tables import Record
from cli.target import Kind, Target, find, path_of
from cli.units import size
from cli.values import key_values

_DRAIN_S = 3600.0  # that a stop may take at most
_START_S = 600.0
_NO_FLAGS = frozenset({"devices", "pinned", "timeout"})
_SETTINGS = _NO_FLAGS | {"gpu_memory_utilization", "max_model_len"}


@with_session
def assign(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL", autocompletion=complete_models)],
    devices: Annotated[
        str | None, typer.Option(help="GPUs by number or UUID, as in 0,1; `none`; `auto`: Berth chooses")
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(min=0, max=1, help="Part of each GPU's memory it may use, as in 0.8")
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="Tokens of a context, at most")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds of idleness until it ends; 0: never")
    ] = None,
    pin: Annotated[bool | None, typer.Option("--pin/--no-pin", help="Never evict it")] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A parameter of the engine; may be repeated"),
    ] = None,
    unset: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Remove a parameter or a setting; may be repeated"),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start again what runs, and wait until it does")
    ] = False,
) -> None:
    """Change how a model is run; what isn't named stays.

    Written to models.yaml, whose comments stay. A parameter's value is JSON if it reads as such (8, 0.5,
    true, [1, 2]), else text. --unset takes parameters' names, and devices, gpu_memory_utilization,
    max_model_len, pinned and timeout.
    """
    changes: dict[str, Any] = {
        "gpu_memory_utilization": gpu_memory,
        "max_model_len": max_model_len,
        "timeout": timeout,
        "pinned": pin,
        "params": key_values(param) if param else None,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    if devices is not None:
        changes["devices"] = _devices(devices)
    removed = [key.replace("-", "_") for key in unset or []]
    _remove(changes, removed)
    if not changes and not restart:
        raise wrong_use("nothing to assign", "see `berth assign --help`")
    _patch(session, model, changes, removed, restart)


@with_session
def rm(
    session: Session,
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A model, or an instance's id", autocompletion=complete_names),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask")] = False,
) -> None:
    """Delete a model's downloaded files.

    Or, if NAME is an instance, stop it and forget it.
    """
    with session.server() as server:
        target = find(server, name)
        if not yes:
            _confirm(target)
        server.request("DELETE", target.path, timeout_s=_DRAIN_S)
    if session.as_json:
        session.print_json(
            {"object": target.kind.value.removesuffix("s"), "name": target.name, "deleted": True}
        )
    else:
        session.say(f"{target} is deleted")


@with_session
def reload(session: Session) -> None:
    """Read models.yaml again; what runs goes on."""
    with session.server() as server:
        answer = server.request("POST", "/reload")
    if session.as_json:
        session.print_json(answer)
    else:
        changed = ", ".join(answer["changed"]) or "nothing"
        session.say(f"{answer['models']} models; changed: {changed}")
        for line in answer.get("warnings", ()):
            session.err.print(f"berth: {line}")


def register(app: typer.Typer) -> None:
    for command in (assign, rm, reload):
        app.command()(command)


def _patch(session: Session, model: str, changes: dict[str, Any], removed: list[str], restart: bool) -> None:
    """Have models.yaml changed, and say so. Raises CliError."""
    with session.server() as server:
        if removed:
            _check_is_set(server.get(path_of(Kind.MODEL, model)), removed)
        record = server.request(
            "PATCH",
            path_of(Kind.MODEL, model),
            params={"restart": "true" if restart else None},
            body=changes,
            timeout_s=_DRAIN_S,
        )
    _check_is_gone(record, removed)
    starts = restart and record["status"] in COMING
    if session.as_json and not starts:
        session.print_json(record)
        return
    if starts:
        session.remark(f"model {record['name']} is changed, and starts again")
        bring_up(session, record["name"], "start", timeout_s=_DRAIN_S, wait=_START_S)
        return
    later = "" if restart or not record["replicas"] else "; it holds from its next start (--restart: now)"
    session.say(f"model {record['name']} is changed{later}")


def _devices(text: str) -> list[str] | None:
    if text == "auto":
        return None
    return [] if text == "none" else [one.strip() for one in text.split(",") if one.strip()]


def _remove(changes: dict[str, Any], keys: list[str]) -> None:
    """Have keys removed wherever each may stand. Raises CliError where one is given a value as well."""
    for key in keys:
        params = changes.setdefault("params", {})
        if not key or changes.get(key) is not None or params.get(key) is not None:
            raise wrong_use(f"--unset {key!r} contradicts its value", "see `berth assign --help`")
        if key in _SETTINGS:
            changes[key] = None
        if key not in _NO_FLAGS:
            params[key] = None
        elif not params:
            del changes["params"]


def _check_is_set(record: Record, keys: list[str]) -> None:
    """Raises CliError for a parameter that the model doesn't have: the name may be mistyped."""
    for key in keys:
        if key not in _SETTINGS and key not in _flags(record):
            known = ", ".join(sorted(_flags(record))) or "none"
            message = f"model {record['name']} has no parameter {key!r}; its parameters: {known}"
            raise CliError(message, ExitCode.REFUSED)


def _check_is_gone(record: Record, keys: list[str]) -> None:
    """Raises CliError where a parameter comes from elsewhere than `params`."""
    for key in keys:
        if key in _flags(record):
            raise CliError(
                f"model {record['name']} still has the parameter {key!r}",
                ExitCode.REFUSED,
                next_step="it stands in `extra_args` or `defaults` of models.yaml: remove it there",
            )


def _flags(record: Record) -> set[str]:
    return {key.replace("-", "_") for key in record["params"]}


def _confirm(target: Target) -> None:
    """Raises CliError unless somebody says yes."""
    if target.kind is Kind.INSTANCE:
        question = f"Stop {target} and forget it?"
    else:
        question = f"Delete the downloaded files of {target} ({size(target.record['size_bytes'])})?"
    if not sys.stdin.isatty():
        raise wrong_use(f"nobody can be asked: {question}", "--yes says yes")
    if not typer.confirm(question, err=True):
        raise CliError(f"{target} is kept", ExitCode.REFUSED)
