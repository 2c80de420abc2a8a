"""Old words don't come back (docs/glossary.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.words import ROOT, find, main, old_words


def test_no_old_word_has_come_back() -> None:
    assert list(find(ROOT)) == []


def test_the_glossary_lists_words_with_what_to_write_instead() -> None:
    words = old_words((ROOT / "docs" / "glossary.md").read_text())
    assert words["Dock"] == "SupervisorContext"
    assert "short way" in words and len(words) > 40


def test_an_old_word_is_found_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "docs").mkdir()
    table = "## Words that stay out\n\n| instead of | write |\n|---|---|\n| Dock, old way | Berth |\n"
    (tmp_path / "docs" / "glossary.md").write_text(table)
    (tmp_path / "a.py").write_text("class Docks: ...\nx = Dock()  # the old way\n")
    (tmp_path / "CHANGELOG.md").write_text("Dock is gone\n")
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(": write")[0] for line in printed] == ["a.py:2: 'Dock'", "a.py:2: 'old way'"]
