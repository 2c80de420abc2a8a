"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Row by row, so that what was measured shows even if the next measurement fails."""
    print(as_table(head, ()), end="", flush=True)
    for row in rows:
        print(_line(row), flush=True)
    print(flush=True)


def as_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return "".join(f"{_line(row)}\n" for row in (head, ["---"] * len(head), *rows))


def _line(row: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in row)} |"


def numbers_of(text: str) -> dict[str, float]:
    """First cell → second cell, of each table's row whose second cell is a number."""
    numbers = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if line.startswith("| ") and len(cells) > 1 and _is_number(cells[1]):
            numbers[cells[0]] = float(cells[1])
    return numbers


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
