"""Tables at any width: ids and names are never cut or broken; and printable text."""

from __future__ import annotations

from typing import Any

import pytest

from cli.tables import (
    INSTANCE_COLUMNS,
    details,
    entry_table,
    instance_row,
    model_table,
    printable,
    table,
)

NOW = 1_000_000.0
INSTANCE: dict[str, Any] = {
    "instance_id": "qwen3-0-6b-4cadc1",
    "model_name": "Qwen/Qwen3-0.6B",
    "served_model_name": "Qwen/Qwen3-0.6B",
    "profile": "small",
    "status": "health_checking",
    "sleep_level": None,
    "port": 22600,
    "pid": 1234567,
    "memory_bytes": 2**30,
    "in_flight": 3,
    "timeout": 600,
    "expires_at": NOW + 60,
    "last_active": NOW - 90,
    "created_at": NOW - 4000,
}
MODEL: dict[str, Any] = {
    "name": "small",
    "state": "stopped",
    "pinned": True,
    "size_bytes": 2**20,
    "memory_bytes": None,
    "engine": "engine",
    "source": "discovered",
    "last_used": NOW - 90,
    "aliases": ["gpt-4o-mini"],
    "error": None,
}


def of_instances(width: int, **fields: Any) -> list[str]:
    row = instance_row(INSTANCE | fields, NOW)
    return table(INSTANCE_COLUMNS, [row], width).plain.splitlines()


def test_at_80_columns_ids_and_names_are_complete_and_in_one_line() -> None:
    header, row = of_instances(80)
    assert len(row) <= 80
    assert row.split()[:4] == ["small", "qwen3-0-6b-4cadc1", "health_checking", "22600"]
    assert "1 min ago" in row and header.startswith("NAME ")


def test_everything_is_shown_without_a_width_limit() -> None:
    _, row = of_instances(10_000)
    assert {"small", "1.0 GiB", "3", "1234567", "Qwen/Qwen3-0.6B"} <= set(row.split("  ")) | {
        cell.strip() for cell in row.split("  ")
    }


@pytest.mark.parametrize("width", [1, 20, 40, 79])
@pytest.mark.parametrize("name", ["n" * 120, "名" * 60, "a name of words " * 8 + "."])
def test_a_name_too_long_for_the_terminal_gets_its_own_line(width: int, name: str) -> None:
    lines = of_instances(width, profile=name)
    assert lines[0] == name
    assert any(line.split() == ["ID", INSTANCE["instance_id"]] for line in lines)
    assert any(line.split() == ["PORT", "22600"] for line in lines)


def test_columns_line_up_below_wide_letters() -> None:
    rows = [instance_row(INSTANCE | {"profile": name}, NOW) for name in ("名前", "name", "n")]
    _, *lines = table(INSTANCE_COLUMNS, rows, 200).plain.splitlines()
    assert [line.index("qwen3") for line in lines] == [4, 6, 6]  # two letters are four columns wide


def test_an_instance_of_another_node_is_shown_with_its_owner() -> None:
    unknown = {"last_active": None, "in_flight": None, "expires_at": None, "owner": "abc"}
    header, row = of_instances(200, **unknown)
    assert "OWNER" in header and "abc" in row
    assert "OWNER" not in of_instances(200)[0]


def test_a_model_that_cannot_run_is_not_shown_as_stopped() -> None:
    problem = "no engine here runs XyzForCausalLM; engine: vllm may"
    text = model_table([MODEL | {"problem": problem}], NOW, 80).plain
    assert "unsupported" in text and "stopped" not in text
    assert text.endswith(f"small: {problem}")
    assert problem in model_table([MODEL | {"problem": problem}], NOW, 10_000).plain.splitlines()[1]
    assert "stopped" in model_table([MODEL | {"problem": None}], NOW, 80).plain
    failed = model_table([MODEL | {"problem": "the engine exited", "state": "failed"}], NOW, 80).plain
    assert "failed" in failed and "unsupported" not in failed, "the engine was tried"


@pytest.mark.parametrize("width", [80, 10_000])
def test_a_request_key_also_sees_why_a_model_cannot_run(width: int) -> None:
    problem = "it has quantised weights, which the embedded engine can't compute with"
    entries = [{"id": name, "state": "stopped", "problem": p} for name, p in (("a", problem), ("b", None))]
    lines = entry_table(entries, width).plain.splitlines()
    assert lines[1].split()[:2] == ["a", "unsupported"] and lines[2].split()[:2] == ["b", "stopped"]
    assert (lines[1] if width > 80 else lines[-1]).endswith(problem)
    assert entry_table(entries[1:], width).plain.splitlines()[0].split() == ["NAME", "STATUS", "CONTEXT"]


def test_a_failed_start_is_shown_below_the_table() -> None:
    failed = MODEL | {
        "state": "failed",
        "error": {"class": "crashed", "message": "model 'small' failed: because\nof this"},
    }
    assert model_table([failed], NOW, 80).plain.endswith("small: failed: because of this")


def test_details_have_a_line_each_and_long_ones_are_not_broken() -> None:
    path = "/a/" + "long/" * 60
    text = details({"path": path, "timeout": 600.0, "empty": None, "created_at": 0.0}).plain
    assert text.splitlines()[:2] == [f"path        {path}", "timeout     600"]
    assert "empty" not in text


@pytest.mark.parametrize(
    "text",
    ["naïve café", "a\u00a0b", "全\u3000角", "👨\u200d👩\u200d👧", "שלום\u200f!", "\U0001fae9", "[bold]x[/]"],
)
def test_every_script_can_be_printed(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("char", ["\x1b", "\x07", "\x9b", "\r", "\ud800", "\u2028", "\u202e"])
def test_control_characters_are_not_printed(char: str) -> None:
    assert printable(f"a{char}b") == "a\ufffdb"
