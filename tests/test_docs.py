"""The documentation is true: files that it names exist, routes are described, the README's commands run."""

from __future__ import annotations

import re
from pathlib import Path

from docs import limits_table
from docs.api_tables import PAGE, render
from engine.server.app.openapi_operations import NO_OP_FIELDS, OPERATIONS

ROOT = Path(__file__).resolve().parent.parent


def test_every_file_that_the_architecture_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`((?:api|cli|instance_manager|engine|docs|configs)/[\w/.]*|app\.py)`", text)
    assert len(named) > 25
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_link_leads_to_a_file() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    links = [(page, to) for page in pages for to in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())]
    assert len(links) > 15
    own = [(page, to) for page, to in links if not to.startswith(("http", "mailto"))]
    assert [(page.name, to) for page, to in own if not (page.parent / to).exists()] == []


def test_every_test_that_the_threats_name_exists() -> None:
    named = re.findall(r"tests/[\w/]+\.py", (ROOT / "docs" / "threats.md").read_text())
    assert len(named) > 25
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_page_of_the_api_is_current() -> None:
    assert render() == PAGE.read_text(encoding="utf-8"), "docs/api.md is old: run `make docs`"


def test_the_page_of_the_limits_is_current() -> None:
    written = limits_table.PAGE.read_text(encoding="utf-8")
    assert limits_table.render() == written, "docs/limits.md is old: run `make docs`"


def test_fields_that_ask_for_nothing_are_fields() -> None:
    bodies = {body for operation in OPERATIONS.values() for body in operation.bodies}
    fields = {name for body in bodies for name in body.model_json_schema()["properties"]}
    assert fields >= NO_OP_FIELDS
