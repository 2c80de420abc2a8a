"""A LoRA adapter as requests have it, and the names it can have. Knows nothing of torch."""

from __future__ import annotations

import re
import uuid
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from engine.errors import InvalidRequest


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Adapter:
    """Its memory is freed with the last reference: a request that runs keeps the adapter it began with."""

    name: str
    weights: Any = field(repr=False)  # the runner's own
    key: bytes = field(default_factory=lambda: uuid.uuid4().bytes, repr=False)  # no two have the same


_MAX_NAME_CHARS = 200


def problem_of_name(name: str) -> str | None:
    """Why an adapter can't have this name, as the end of a sentence; None if it can.

    Names stand in URLs, in log lines and behind the model's own name, as `model:adapter`.
    """
    if not name.strip():
        return "is empty"
    if len(name) > _MAX_NAME_CHARS:
        return f"has {len(name)} characters; {_MAX_NAME_CHARS} are possible"
    if not name.isprintable() or name != name.strip():
        return "has line ends, control characters or spaces at an end"
    if ":" in name:
        return "has a colon, which separates the names in `model:adapter`"
    if any(part in ("", ".", "..") for part in re.split(r"[/\\]", name)):
        return "reads like a path; slashes may only separate parts of a name"
    return None


def check_name(name: str) -> None:
    """Raise InvalidRequest for a name that no adapter can have."""
    problem = problem_of_name(name)
    if problem is not None:
        raise InvalidRequest(f"The lora adapter name {shown_name(name)} {problem}.", param="lora_name")


def shown_name(name: str) -> str:
    """In a message."""
    return repr(name[:_MAX_NAME_CHARS]) + ("…" if len(name) > _MAX_NAME_CHARS else "")


def check_is_free(name: str, *, taken: Container[str], loaded: Container[str]) -> None:
    """Raise InvalidRequest for a name that is in use. `taken`: the model's own; `loaded`: of adapters."""
    if name in taken:
        raise InvalidRequest(
            f"The lora adapter name {name!r} is a name of the served model.", param="lora_name"
        )
    if name in loaded:
        raise InvalidRequest(
            f"The lora adapter {name!r} has already been loaded. If you want to load the adapter in "
            "place, set 'load_inplace' to True.",
            param="lora_name",
        )
