"""The types of settings: how each is read from text and checked; errors say what a value must be."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from configs.base_url import is_base_url
from configs.home import expand_home
from configs.origins import normalized_origin
from configs.syslog_address import SyslogAddress


def _split_commas(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(filter(None, (part.strip() for part in value.split(","))))
    return value


def _split_paths(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(Path(part) for part in value.split(os.pathsep) if part)
    return value


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _level(value: Any) -> Any:
    level = _lower(value)
    return {"trace": "debug", "warn": "warning", "fatal": "critical"}.get(level, level)


def _check_paths(value: tuple[str, ...]) -> tuple[str, ...]:
    for path in value:
        if not re.fullmatch(r"(/(?!\*\*/)(\*\*?|[A-Za-z0-9._~-]+))+", path) or "/.." in path:
            raise ValueError("must be engine paths such as /predict or /custom/*, with ** only at the end")
    return value


def _locate(value: Path) -> Path:
    """Make it absolute: engines run in another folder than Berth."""
    return expand_home(value).absolute()


def _locate_program(value: str) -> str:
    is_name = not ("/" in value or value.startswith("~"))
    return value if is_name else str(expand_home(value).absolute())


def _check_syslog(value: str) -> str:
    SyslogAddress.parse(value)
    return value


def _check_collector(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError(
            "must be the URL of a collector that accepts OTLP over HTTP, such as http://host:4318"
        )
    return value


def _check_node_url(value: str) -> str:
    if not is_base_url(value):
        raise ValueError("must be the URL of this node, http://HOST:PORT, without a path")
    return value


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]
RequestPaths = Annotated[Words, AfterValidator(_check_paths)]
Origins = Annotated[Words, AfterValidator(lambda value: tuple(normalized_origin(one) for one in value))]
Location = Annotated[Path, AfterValidator(_locate)]
Locations = Annotated[
    tuple[Path, ...],
    NoDecode,
    BeforeValidator(_split_paths),
    AfterValidator(lambda value: tuple(_locate(one) for one in value)),
]
LocationText = Annotated[str, AfterValidator(lambda value: str(_locate(Path(value))))]
Program = Annotated[str, AfterValidator(_locate_program)]
Lower = BeforeValidator(_lower)
LogLevel = Annotated[Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_level)]
SyslogTarget = Annotated[str, AfterValidator(_check_syslog)]
CollectorUrl = Annotated[str, AfterValidator(_check_collector)]
NodeUrl = Annotated[str, AfterValidator(_check_node_url)]
