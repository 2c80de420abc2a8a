"""`berth assign | rm | reload`: models and their settings."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from cli.commands.lifecycle import STARTING, bring_up
from cli.completion import complete_models, complete_names
from cli.errors import CliError, ExitCode, wrong_use
from cli.session import Session, with_session
from cli.tables import Record
from cli.target import Kind, Target, find, path_of
from cli.units import size
from cli.values import key_values

_DRAIN_S = 3600.0  # the longest duration of a stop
_START_S = 600.0
_NOT_FLAGS = frozenset({"devices", "pinned", "timeout"})
_SETTINGS = _NOT_FLAGS | {"gpu_memory_utilization", "max_model_len"}


@with_session
def assign(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL", autocompletion=complete_models)],
    devices: Annotated[
        str | None, typer.Option(help="GPUs by number or UUID, e.g. 0,1; `none`; `auto` = Berth chooses")
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(min=0, max=1, help="Fraction of each GPU's memory it may use, e.g. 0.8")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Maximum length of a context in tokens")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Idle seconds until it expires; 0 = never")
    ] = None,
    pin: Annotated[bool | None, typer.Option("--pin/--no-pin", help="Never expire or evict it")] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A parameter of the engine; may be repeated"),
    ] = None,
    unset: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Parameter or setting to remove; may be repeated"),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Restart running replicas, and wait until they run")
    ] = False,
) -> None:
    """Change how a model is run; settings that aren't named stay.

    Writes models.yaml and keeps its comments. A parameter's value is JSON if it can be parsed as such (8,
    0.5, true, [1, 2]), else text. --unset takes the name of a parameter, or devices, gpu_memory_utilization,
    max_model_len, pinned or timeout.
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
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask for confirmation")] = False,
) -> None:
    """Delete a model's downloaded files.

    If NAME is an instance, stop and delete the instance.
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
    """Reload models.yaml; running instances stay as they are."""
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
    """Change models.yaml and report it. Raises CliError."""
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
    _check_is_removed(record, removed)
    starts = restart and record["state"] in STARTING
    if session.as_json and not starts:
        session.print_json(record)
        return
    if starts:
        session.remark(f"model {record['name']} is changed; restarting it")
        bring_up(session, record["name"], "start", timeout_s=_DRAIN_S, wait=_START_S)
        return
    later = (
        "" if restart or not record["replicas"] else "; this takes effect at its next start (--restart: now)"
    )
    session.say(f"model {record['name']} is changed{later}")


def _devices(text: str) -> list[str] | None:
    if text == "auto":
        return None
    return [] if text == "none" else [one.strip() for one in text.split(",") if one.strip()]


def _remove(changes: dict[str, Any], keys: list[str]) -> None:
    """Mark keys for removal wherever they may be. Raises CliError for a key that also gets a value."""
    for key in keys:
        params = changes.setdefault("params", {})
        if not key or changes.get(key) is not None or params.get(key) is not None:
            raise wrong_use(f"--unset {key!r} contradicts a value given for it", "see `berth assign --help`")
        if key in _SETTINGS:
            changes[key] = None
        if key not in _NOT_FLAGS:
            params[key] = None
        elif not params:
            del changes["params"]


def _check_is_set(record: Record, keys: list[str]) -> None:
    """Raises CliError for a parameter that the model doesn't have: its name may be misspelt."""
    for key in keys:
        if key not in _SETTINGS and key not in _flags(record):
            known = ", ".join(sorted(_flags(record))) or "none"
            message = f"model {record['name']} has no parameter {key!r}; its parameters: {known}"
            raise CliError(message, ExitCode.REFUSED)


def _check_is_removed(record: Record, keys: list[str]) -> None:
    """Raises CliError for a parameter that doesn't come from `params`."""
    for key in keys:
        if key in _flags(record):
            raise CliError(
                f"model {record['name']} still has the parameter {key!r}",
                ExitCode.REFUSED,
                next_step="it is set in `extra_args` or `defaults` of models.yaml: remove it there",
            )


def _flags(record: Record) -> set[str]:
    return {key.replace("-", "_") for key in record["params"]}


def _confirm(target: Target) -> None:
    """Raises CliError unless the user confirms."""
    if target.kind is Kind.INSTANCE:
        question = f"Stop and delete {target}?"
    else:
        question = f"Delete the downloaded files of {target} ({size(target.record['size_bytes'])})?"
    if not sys.stdin.isatty():
        raise wrong_use(f"not at a terminal, so this can't be confirmed: {question}", "use --yes to confirm")
    if not typer.confirm(question, err=True):
        raise CliError(f"{target} was not deleted", ExitCode.REFUSED)
