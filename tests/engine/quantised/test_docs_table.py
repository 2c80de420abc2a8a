"""The page of models says what is read, as the engine's own tables have it."""

from __future__ import annotations

import re
from pathlib import Path

from engine.checkpoint.gguf_config import ARCHITECTURES
from engine.checkpoint.gguf_file import TYPES
from engine.checkpoint.quantisation import METHODS

PAGE = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## Quantised checkpoints")[2]


def row(title: str) -> str:
    (found,) = re.findall(rf"^\| {title} \| (.*) \|$", SECTION, re.MULTILINE)
    return str(found)


def test_the_table_has_every_method() -> None:
    assert set(re.findall(r"^\| `([\w-]+)` \|", SECTION, re.MULTILINE)) == METHODS


def test_the_table_has_what_is_read_of_gguf_files() -> None:
    encoders = {name for name, architecture in ARCHITECTURES.items() if architecture.is_encoder}
    assert re.findall(r"`([\w-]+)`", row("architectures")) == sorted(ARCHITECTURES.keys() - encoders)
    assert re.findall(r"`([\w-]+)`", row("of encoders")) == sorted(encoders)
    assert set(row("types of tensors").split(", ")) == {name for name, _, _ in TYPES.values()}
