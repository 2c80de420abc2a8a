"""Tables that fit the terminal: text that users may copy is never cut or broken over two lines.

If the columns don't all fit, the least useful ones are left out; if not even the necessary ones fit, each row
becomes a block of lines. Knows nothing of the cells' content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cli.units import NOTHING

if TYPE_CHECKING:
    from rich.text import Text

_GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """`rank`: 0 = always shown; among the others, the highest is left out first."""

    title: str
    rank: int = 0
    is_right: bool = False
    only_if_any: bool = False  # left out if it is empty in all rows


Row = Sequence[str]  # a cell for each column


def fitting(columns: Sequence[Column], rows: Sequence[Row], width: int) -> list[int] | None:
    """The indexes of the columns to show; None if the columns with rank 0 don't fit."""
    widths = _widths(columns, rows)
    kept = [
        index
        for index, column in enumerate(columns)
        if not column.only_if_any or any(row[index] != NOTHING for row in rows)
    ]
    while sum(widths[index] for index in kept) + len(_GAP) * (len(kept) - 1) > width:
        least = max(kept, key=lambda index: columns[index].rank)
        if columns[least].rank == 0:
            return None
        kept.remove(least)
    return kept


def drawn(columns: Sequence[Column], rows: Sequence[Row], styles: Sequence[str], width: int) -> Text:
    """The table; `styles`: of each row's STATUS."""
    from rich.text import Text

    kept = fitting(columns, rows, width)
    if kept is None:
        blocks = (_block(columns, row, style) for row, style in zip(rows, styles, strict=True))
        return Text("\n\n").join(blocks)
    widths = _widths(columns, rows)
    shown = [(columns[index], index, widths[index]) for index in kept]
    head = _line(shown, [column.title for column in columns], "bold")
    head.stylize("bold")
    lines = (_line(shown, row, style) for row, style in zip(rows, styles, strict=True))
    return Text("\n").join([head, *lines])


def _line(shown: Sequence[tuple[Column, int, int]], row: Row, style: str) -> Text:
    from rich.cells import cell_len
    from rich.text import Text

    line = Text()
    for number, (column, index, width) in enumerate(shown):
        cell = row[index]
        padding = " " * (width - cell_len(cell))
        line.append(_GAP if number else "")
        line.append(padding if column.is_right else "")
        line.append(cell, style if column.title == "STATUS" else None)
        line.append("" if column.is_right else padding)
    line.rstrip()
    return line


def _block(columns: Sequence[Column], row: Row, style: str) -> Text:
    """The first cell as a heading, and the other non-empty cells below it, one per line."""
    from rich.text import Text

    widest = max(len(column.title) for column in columns)
    block = Text().append(row[0], "bold")
    for column, cell in zip(columns[1:], row[1:], strict=True):
        if cell != NOTHING:
            block.append(f"\n{_GAP}{column.title.ljust(widest)}{_GAP}")
            block.append(cell, style if column.title == "STATUS" else None)
    return block


def _widths(columns: Sequence[Column], rows: Sequence[Row]) -> list[int]:
    from rich.cells import cell_len

    return [
        max([len(column.title), *(cell_len(row[index]) for row in rows)])
        for index, column in enumerate(columns)
    ]
