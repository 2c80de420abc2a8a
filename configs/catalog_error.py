"""Mistakes in models.yaml: each is a line that says where and what; and all of them combined."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.one_line import one_line
from configs.yaml_document import KeyPath, read_yaml

NO_VALUE = object()


class CatalogError(Exception):
    """An invalid catalog; the message is one line: file and line, key, value, and what is allowed."""

    def __init__(
        self,
        path: Path,
        problem: str,
        *,
        line: int | None = None,
        keys: KeyPath = (),
        value: Any = NO_VALUE,
    ) -> None:
        self.path = path
        self.problem = problem
        self.line = line  # from 1; None: about the file as a whole
        self.keys = keys
        self.value = value
        self.more: tuple[CatalogError, ...] = ()  # further mistakes in the same file
        place = str(path) if line is None else f"{path}:{line}"
        key = ".".join(map(str, keys))
        shown = "" if value is NO_VALUE else f"={reprlib.repr(value)}"
        message = f"{place}: {key}{shown}: {problem}" if key else f"{place}: {problem}"
        super().__init__(one_line(message))

    @property
    def lines(self) -> list[str]:
        """This and all further mistakes, one line each."""
        return [str(self), *map(str, self.more)]

    def without_line(self) -> CatalogError:
        """The same for a text that is in no file."""
        return self._at(None)

    def found_in(self, text: str) -> CatalogError:
        """The same, with the line of its keys in the file's text."""
        return self._at(read_yaml(text).find(self.keys)[1]) if self.keys else self

    def _at(self, line: int | None) -> CatalogError:
        return CatalogError(self.path, self.problem, line=line, keys=self.keys, value=self.value)


@contextmanager
def collecting(mistakes: list[CatalogError]) -> Iterator[None]:
    """Continue after a mistake."""
    try:
        yield
    except CatalogError as error:
        mistakes += [error, *error.more]


def combined(mistakes: Sequence[CatalogError]) -> CatalogError:
    """The first, which holds the others."""
    first, *more = mistakes
    first.more = tuple(more)
    return first
