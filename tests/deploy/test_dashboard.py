"""The dashboard and the page on metrics, against what a real Berth exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from docs.metrics_table import render
from engine.core.types import EngineStats
from engine.server.model.metrics import Metrics
from tests.berth_process import running_berth
from tests.fake_engine import command

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "berth.json").read_text())
_METRIC = re.compile(r"\b(?:berth_|process_|vllm:)\w+")
_ENDINGS = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


def read(text: str) -> list[Metric]:
    return list(text_string_to_metric_families(text))


def series(families: list[Metric]) -> set[str]:
    """The names that a query may have."""
    return {f.name + ending for f in families for ending in _ENDINGS.get(f.type, ("",))}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Metric]]:
    with running_berth(tmp_path_factory.mktemp("dashboard")) as berth, berth.client() as client:
        body = {"model_name": "fake", "engine": "command", "name": "one", "command": command()}
        client.post("/instances?wait=30", json=body)
        client.get("/proxy/one/v1/models")
        yield read(client.get("/metrics").text)


def queries() -> list[str]:
    targets = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    variables = [
        one["query"]["query"] for one in DASHBOARD["templating"]["list"] if one["name"] != "datasource"
    ]
    return [target["expr"] for target in targets] + variables


def test_every_metric_that_the_dashboard_names_is_exported(exported: list[Metric]) -> None:
    engine = read(Metrics("m", EngineStats).render().decode())
    known = series(exported) | series(engine)
    named = {name for query in queries() for name in _METRIC.findall(query)}
    assert len(named) > 30
    assert named - known == set()


def test_the_dashboard_shows_every_metric_of_berth(exported: list[Metric]) -> None:
    shown = {name for query in queries() for name in _METRIC.findall(query)}
    ours = {f.name for f in exported if f.name.startswith("berth_")}
    unseen = {name for name in ours if not any(name in one for one in shown)}
    in_tables = {"berth_build_info", "berth_instance_sleep_level", "berth_instance_idle_seconds"}
    costs_of_scraping = {"berth_engine_scrape_seconds", "berth_engine_scrape_lines_left_out"}
    assert unseen == in_tables | costs_of_scraping


def test_panels_lie_side_by_side_and_have_what_grafana_needs() -> None:
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARD["panels"]:
        at: dict[str, Any] = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
        for target in panel.get("targets", []):
            assert target["expr"].count("(") == target["expr"].count(")")
            assert target["datasource"]["uid"] == "${datasource}"


def test_the_page_on_metrics_lists_every_metric_as_it_is(exported: list[Metric]) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert render(page) == page  # else run `make docs`
    rows = re.findall(r"^\| `(berth_\w+)` \| (\w+) \| (.*?) \| (.+) \|$", page, re.MULTILINE)
    listed = {name: (kind, text) for name, kind, _, text in rows}
    ours = [family for family in exported if family.name.startswith("berth_")]
    names = {f.name + ("_total" if f.type == "counter" else ""): (f.type, f.documentation) for f in ours}
    assert listed == names
    labels = {name.removesuffix("_total"): set(re.findall(r"`(\w+)`", named)) for name, _, named, _ in rows}
    for family in ours:
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == labels[family.name], sample
