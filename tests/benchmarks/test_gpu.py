"""The GPU's check runs all of its parts, whatever becomes of each; here by its rehearsal on a CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as check
from benchmarks.gpu.table import as_table, numbers_of


def test_a_rehearsed_part_is_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.md"
    monkeypatch.setattr(sys, "argv", ["gpu", "--rehearse", "--out", str(out), "machine"])
    assert check.main() == 0
    assert "| device | a CPU |" in (text := out.read_text())
    assert capsys.readouterr().out == text


def test_a_part_that_fails_or_hangs_does_not_end_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time-out of 0.2 s is over before Python has imported torch."""
    report = check.Report(tmp_path / "report.md")
    monkeypatch.setattr(check, "_LEAST_S", 0.0)
    parts = [check.Part("machine", 0.2), check.Part("no_such_part", 60)]
    assert check._run_all(parts, report, 60, {}) == 1
    assert "**Stopped** after" in report.text
    assert "no such part: no_such_part" in report.text
    assert report.text.endswith("Failed: machine, graphs; no_such_part, graphs.\n")


def test_speeds_are_read_from_a_table() -> None:
    table = as_table(("step", "ms"), [("8B, decode", "1.25"), ("8B, prefill", "failed"), ("x", 3, "y")])
    assert numbers_of(f"Text | 4 |\n{table}") == {"8B, decode": 1.25, "x": 3.0}


def test_the_last_table_compares_the_paths() -> None:
    text = check._comparison({"torch": {"a": 2.0, "b": 1.0}, "graphs": {"a": 0.5}})
    assert "| a | 2.0 | 0.5 |\n| b | 1.0 | – |\n" in text
