"""Messages that stay on one line, whatever the values in them contain."""

from __future__ import annotations


def one_line(message: str) -> str:
    """The message with unprintable characters escaped."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in message)
