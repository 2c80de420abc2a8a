"""Collects the ignored fields of a request while its body is read; reported in a `Warning` header.

With `--unknown-fields warn`, undeclared fields are dropped and reported; with `refuse` they are errors. Each
name is logged once per process. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from pydantic import BaseModel

log = logging.getLogger(__name__)

_MAX_REPORTED = 16  # in one header
_MAX_NAME_CHARS = 100
_MAX_LOGGED = 1000  # different names per process
_UNPRINTABLE = re.compile(r"[^ !#-\[\]-~]")  # in a quoted string of a header

_logged: set[str] = set()


class IgnoredFields:
    """Ignored fields of one request, filled while its body is read and used when the response starts."""

    def __init__(self, *, refuses_unknown: bool) -> None:
        self.refuses_unknown = refuses_unknown
        self._reasons: dict[str, str] = {}

    def add(self, name: str, reason: str) -> None:
        name = name[:_MAX_NAME_CHARS]
        self._reasons.setdefault(name, reason)
        if name not in _logged and len(_logged) < _MAX_LOGGED:
            _logged.add(name)
            log.warning("Ignored field %r of a request: %s. This is logged only once.", name, reason)

    @property
    def header(self) -> str | None:
        """The value of `Warning`, code 299: a persistent warning (RFC 7234). None if nothing was ignored."""
        if not self._reasons:
            return None
        named = [f"{name} ({reason})" for name, reason in list(self._reasons.items())[:_MAX_REPORTED]]
        if len(self._reasons) > len(named):
            named.append(f"{len(self._reasons) - len(named)} more")
        return f'299 berth "ignored: {_UNPRINTABLE.sub("?", ", ".join(named))}"'


_current: ContextVar[IgnoredFields | None] = ContextVar("ignored_fields", default=None)


def collect_ignored(*, refuses_unknown: bool) -> IgnoredFields:
    """Collect the ignored fields of this task and its children."""
    ignored = IgnoredFields(refuses_unknown=refuses_unknown)
    _current.set(ignored)
    return ignored


def report_ignored(name: str, reason: str) -> None:
    """Report that `name` (a path such as `tools[1]`) has no effect on the current request."""
    ignored = _current.get()
    if ignored is not None:
        ignored.add(name, reason)


def unknown_are_refused() -> bool:
    ignored = _current.get()
    return ignored is not None and ignored.refuses_unknown


def drop_unknown(checked: BaseModel) -> None:
    """Remove undeclared fields from `checked`, and report each once."""
    for path in dict.fromkeys(_remove_extras(checked, "")):
        report_ignored(path, "unknown field")


def _remove_extras(value: Any, path: str) -> Iterator[str]:
    """Paths of unknown fields, without list indices: `messages[].mood` is reported once for all messages."""
    if isinstance(value, BaseModel):
        prefix = f"{path}." if path else ""
        if type(value).model_config.get("extra") != "allow":  # such a model keeps them on purpose
            extras = value.__pydantic_extra__ or {}
            yield from [f"{prefix}{name}" for name in extras]
            extras.clear()
        for name, field in type(value).model_fields.items():
            yield from _remove_extras(getattr(value, name), f"{prefix}{field.alias or name}")
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, BaseModel | list):
                yield from _remove_extras(item, f"{path}[]")
