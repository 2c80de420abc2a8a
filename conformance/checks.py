"""Checks that report how a response differs from the expected one."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any


class Mismatch(Exception):
    """The response is not the expected one; the message has both."""


class NotApplicable(Exception):
    """The case does not apply to this server or model; the message says why."""


def check(condition: object, what: str) -> None:
    """Raise Mismatch unless `condition` holds."""
    if not condition:
        raise Mismatch(what)


def equal(actual: Any, expected: Any, what: str) -> None:
    if actual != expected:
        raise Mismatch(f"{what}: {brief(actual)}, expected {brief(expected)}")


def close(actual: float, expected: float, what: str, *, within: float = 1e-3) -> None:
    if abs(actual - expected) > within:
        raise Mismatch(f"{what}: {actual}, expected {expected} ± {within}")


def has_keys(value: Any, keys: Collection[str], what: str) -> None:
    """Check that `value` is an object with at least these keys."""
    check(isinstance(value, dict), f"{what}: {brief(value)} is not an object")
    missing = sorted(set(keys) - set(value))
    check(not missing, f"{what} lacks {', '.join(missing)}: {brief(value)}")


def brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return repr(text)[1:-1] if len(text) <= 300 else f"{repr(text[:300])[1:-1]}…"
