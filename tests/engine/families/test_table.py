"""docs/models.md says what these tests try."""

from __future__ import annotations

from docs.families_table import PAGE, render


def test_the_documented_families_are_those_that_are_tried() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert render(page) == page, "docs/models.md is old: run `make docs`"
