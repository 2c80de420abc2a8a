"""Messages that stay one line, whatever stands in the values that they name."""

from __future__ import annotations


def one_line(message: str) -> str:
    """The message with what can't be printed escaped."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in message)
