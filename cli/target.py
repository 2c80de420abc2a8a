"""Resolves a NAME on the command line: an instance, or else a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import quote

from cli.errors import CliError, ExitCode, wrong_use
from cli.server import Server

T = TypeVar("T")
MODELS_PATH = "/v1/models"  # all that a key for requests may read
_ADMIN_KEY_REQUIRED = "admin_key_required"  # the code of errors


class Kind(StrEnum):
    """The values are the collections' names in URLs."""

    INSTANCE = "instances"
    MODEL = "models"


@dataclass(frozen=True, slots=True)
class Target:
    """An instance or a model, with its record."""

    kind: Kind
    name: str
    record: dict[str, Any]

    @property
    def path(self) -> str:
        return path_of(self.kind, self.name)

    def __str__(self) -> str:
        return f"{'instance' if self.kind is Kind.INSTANCE else 'model'} {self.name}"


def path_of(kind: Kind, name: str) -> str:
    """The URL path of an instance or a model; models' names may have slashes. Raises CliError."""
    if not name:
        raise wrong_use("the name is empty", "`berth list` shows the models")
    return f"/{kind}/{quote(name, safe='/' if kind is Kind.MODEL else '')}"


def unless_not_admin(ask: Callable[[], T]) -> T | None:
    """The response; None if the key only allows requests. Raises CliError."""
    try:
        return ask()
    except CliError as exc:
        if exc.code != _ADMIN_KEY_REQUIRED:
            raise
        return None


def state_of(record: Mapping[str, Any]) -> str:
    """Of an instance, or of a model, whose `status` is an object in llama.cpp's words."""
    return str(record["state"] if "state" in record else record["status"])


def record_for(server: Server, name: str) -> dict[str, Any]:
    """The record of an instance or a model, as far as the key allows. Raises CliError."""
    target = unless_not_admin(lambda: find(server, name))
    if target is not None:
        return target.record
    entry: dict[str, Any] = server.get(f"{MODELS_PATH}/{quote(name)}")
    return entry


def find(server: Server, name: str) -> Target:
    """The instance with this id, or else the model with this name or alias. Raises CliError."""
    instance_path = path_of(Kind.INSTANCE, name)
    if "/" not in name:  # only hub ids contain slashes
        try:
            return Target(Kind.INSTANCE, name, server.get(instance_path))
        except CliError as exc:
            if exc.exit_code is not ExitCode.NOT_FOUND:
                raise
    record = server.get(path_of(Kind.MODEL, name))
    return Target(Kind.MODEL, record["name"], record)
