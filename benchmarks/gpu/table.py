"""Prints tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Row by row, so that what was measured shows even if the next measurement fails."""
    _print(head)
    _print(["---"] * len(head))
    for row in rows:
        _print(row)
    print(flush=True)


def _print(row: Sequence[object]) -> None:
    print(f"| {' | '.join(str(cell) for cell in row)} |", flush=True)
