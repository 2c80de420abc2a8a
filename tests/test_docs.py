"""The documentation is true: files that it names exist, routes are described, the README's commands run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import clients_table, limits_table
from docs.api_tables import PAGE, render
from engine.server.app.openapi_operations import NO_OP_FIELDS, OPERATIONS
from instance_manager.types import FailureClass, InstanceState

ROOT = Path(__file__).resolve().parent.parent


ARCHITECTURE = ROOT / "docs" / "architecture.md"
PACKAGE_PAGES = {
    "api": "api.md",
    "instance_manager": "instance_manager.md",
    "engine": "engine.md",
    "engine/server": "engine-server.md",
}
PAGES = [ARCHITECTURE, *sorted((ROOT / "docs" / "architecture").glob("*.md"))]
NAMED_PACKAGES = "|".join(
    (
        *("api", "benchmarks", "cli", "composition", "configs", "conformance", "docs", "engine"),
        *("host_limits", "instance_manager", "log_output", "tests", "training"),
    )
)
NAMED = re.compile(rf"(?<![\w/.-])(?:(?:{NAMED_PACKAGES})/[\w/.-]*|app\.py)")  # in text and in diagrams


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_every_file_that_the_architecture_names_exists(page: Path) -> None:
    named = NAMED.findall(page.read_text(encoding="utf-8"))
    assert len(named) >= 15
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_line_about_the_architecture_is_too_long(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120] == []


def test_the_architecture_is_short_enough_to_read_at_once() -> None:
    assert len(ARCHITECTURE.read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize(("package", "page"), PACKAGE_PAGES.items())
def test_every_subpackage_is_named_on_both_pages(package: str, page: str) -> None:
    names = [f"{package}/{file.parent.name}/" for file in sorted((ROOT / package).glob("*/__init__.py"))]
    assert len(names) > 5
    for path in (ARCHITECTURE, ROOT / "docs" / "architecture" / page):
        text = path.read_text(encoding="utf-8")
        assert [name for name in names if f"`{name}" not in text] == [], path.name


def test_every_state_and_failure_class_is_listed() -> None:
    states = (ROOT / "docs" / "http.md").read_text().partition("## States")[2].partition("\n## ")[0]
    assert {*InstanceState, *FailureClass} <= set(re.findall(r"`(\w+)`", states))


_ELSEWHERE = ("https:", "http:", "mailto:")  # docs/http.md is here


def test_every_link_leads_to_a_file() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    links = [(page, to) for page in pages for to in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())]
    assert len(links) > 15
    own = [(page, to) for page, to in links if not to.startswith(_ELSEWHERE)]
    assert [(page.name, to) for page, to in own if not (page.parent / to).exists()] == []


def test_every_anchor_is_a_heading() -> None:
    found = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for to, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if not to.startswith(_ELSEWHERE) and anchor not in anchors(page.parent / to if to else page):
                found.append((page.name, to, anchor))
    assert found == []


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_test_that_the_threats_name_exists() -> None:
    named = re.findall(r"tests/[\w/]+\.py", (ROOT / "docs" / "threats.md").read_text())
    assert len(named) > 25
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_page_of_the_api_is_current() -> None:
    assert render() == PAGE.read_text(encoding="utf-8"), "docs/api.md is old: run `make docs`"


def test_the_page_of_the_limits_is_current() -> None:
    written = limits_table.PAGE.read_text(encoding="utf-8")
    assert limits_table.render() == written, "docs/limits.md is old: run `make docs`"


def test_the_table_of_clients_is_current() -> None:
    page = clients_table.PAGE.read_text(encoding="utf-8")
    assert page == clients_table.render(page), "run `make docs`"


def test_fields_that_ask_for_nothing_are_fields() -> None:
    bodies = {body for operation in OPERATIONS.values() for body in operation.bodies}
    fields = {name for body in bodies for name in body.model_json_schema()["properties"]}
    assert fields >= NO_OP_FIELDS
