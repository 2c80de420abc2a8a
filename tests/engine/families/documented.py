"""What docs/models.md says of a family, and whether a test finds the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from docs.families_table import BEGIN, END, NO, PAGE, REFUSALS, YES, Row
from engine.errors import ConfigError, UnsupportedModel
from tests.engine.families.recipe import Recipe


def row_of(recipe: Recipe) -> Row:
    """The row of the family's architecture."""
    return _rows()[architecture_of(recipe)]


def architecture_of(recipe: Recipe) -> str:
    """As the page writes it."""
    return f"`{MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[recipe.model_type]}`"


@cache
def _rows() -> dict[str, Row]:
    return documented_rows(PAGE.read_text(encoding="utf-8"))


def documented_rows(page: str) -> dict[str, Row]:
    """The rows of the page, by architecture."""
    _, _, rest = page.partition(BEGIN)
    lines = rest.partition(REFUSALS)[0].splitlines()
    cells = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")
    )
    return {row[0]: Row(*row) for row in cells}


def documented_refusals(page: str) -> set[tuple[str, str]]:
    """Architectures with what a start says of them."""
    _, _, rest = page.partition(REFUSALS)
    lines = rest.partition(END)[0].splitlines()
    cells = (line.strip("| ").split(" | ") for line in lines if line.startswith("| `"))
    return {(name, reason) for name, reason in cells}


def check_documented(cell: str, check: Callable[[], None]) -> None:
    """`check` passes if the cell says yes; if it says no, a start is refused in these words."""
    try:
        check()
    except (ConfigError, UnsupportedModel) as refusal:
        _, no, words = cell.partition(NO)
        assert no and words in refusal.message, f"docs/models.md says {cell!r}, a start: {refusal.message}"
    else:
        assert cell.startswith(YES), f"docs/models.md says {cell!r}, but it runs"
