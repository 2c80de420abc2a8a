"""What a request asks for and doesn't get: collected while its body is read, reported in a `Warning` header.

With `--unknown-fields warn`, fields that no body declares are dropped and reported; with `refuse` they are
errors. Each name is logged once per process. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from pydantic import BaseModel

log = logging.getLogger(__name__)

_MAX_NAMED = 16  # in one header
_MAX_NAME_CHARS = 100
_MAX_LOGGED = 1000  # different names in a process's life
_UNPRINTABLE = re.compile(r"[^ !#-\[\]-~]")  # in a quoted string of a header

_logged: set[str] = set()


class IgnoredFields:
    """Of one request. Filled from whichever thread reads the body, read once the answer begins."""

    def __init__(self, *, refuses_unknown: bool) -> None:
        self.refuses_unknown = refuses_unknown
        self._reasons: dict[str, str] = {}

    def add(self, name: str, reason: str) -> None:
        name = name[:_MAX_NAME_CHARS]
        self._reasons.setdefault(name, reason)
        if name not in _logged and len(_logged) < _MAX_LOGGED:
            _logged.add(name)
            log.warning("Ignored %r of a request: %s. It is not logged again.", name, reason)

    @property
    def header(self) -> str | None:
        """The value of `Warning`, code 299: a persistent warning (RFC 7234). None where all was heeded."""
        if not self._reasons:
            return None
        named = [f"{name} ({reason})" for name, reason in list(self._reasons.items())[:_MAX_NAMED]]
        if len(self._reasons) > len(named):
            named.append(f"{len(self._reasons) - len(named)} more")
        return f'299 berth "ignored: {_UNPRINTABLE.sub("?", ", ".join(named))}"'


_current: ContextVar[IgnoredFields | None] = ContextVar("ignored_fields", default=None)


def collect_ignored(*, refuses_unknown: bool) -> IgnoredFields:
    """From now on, this task and those it starts report here."""
    ignored = IgnoredFields(refuses_unknown=refuses_unknown)
    _current.set(ignored)
    return ignored


def report_ignored(name: str, reason: str) -> None:
    """Say that `name` (a path such as `tools[1]`) has no effect on the current request."""
    ignored = _current.get()
    if ignored is not None:
        ignored.add(name, reason)


def unknown_are_refused() -> bool:
    ignored = _current.get()
    return ignored is not None and ignored.refuses_unknown


def drop_unknown(checked: BaseModel) -> None:
    """Take the fields that no model declares out of `checked`, which may hold them, and report each once."""
    for path in dict.fromkeys(_take_extras(checked, "")):
        report_ignored(path, "unknown field")


def _take_extras(value: Any, path: str) -> Iterator[str]:
    """Paths of unknown fields, without positions in lists: `messages[].mood` is one, however many have it."""
    if isinstance(value, BaseModel):
        prefix = f"{path}." if path else ""
        if type(value).model_config.get("extra") != "allow":  # such a model is there to keep them
            extras = value.__pydantic_extra__ or {}
            yield from [f"{prefix}{name}" for name in extras]
            extras.clear()
        for name, field in type(value).model_fields.items():
            yield from _take_extras(getattr(value, name), f"{prefix}{field.alias or name}")
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, BaseModel | list):
                yield from _take_extras(item, f"{path}[]")
