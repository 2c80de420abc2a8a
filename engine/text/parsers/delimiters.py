"""Finds delimiters in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


def held_back(text: str, delimiters: Sequence[str]) -> int:
    """How many characters at the end of `text` may still become one of the delimiters."""
    longest = 0
    for delimiter in delimiters:
        for length in range(min(len(delimiter) - 1, len(text)), longest, -1):
            if text.endswith(delimiter[:length]):
                longest = length
                break
    return longest


def first_delimiter(text: str, delimiters: Sequence[str]) -> tuple[int, str] | None:
    """Where the first delimiter begins, and which it is; the longer of two that begin together."""
    found = [
        (at, -len(delimiter), delimiter) for delimiter in delimiters if (at := text.find(delimiter)) >= 0
    ]
    if not found:
        return None
    at, _, delimiter = min(found)
    return at, delimiter
