"""A real Prometheus, where installed, scrapes a real Berth: labels, discovery, the dashboard's queries."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.berth_process import free_port, running_berth
from tests.fake_engine import command

DASHBOARD = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "berth.json"
CONFIG = """\
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: berth
    honor_labels: true
    static_configs: [{{targets: ["{address}"]}}]
  - job_name: engines
    http_sd_configs: [{{url: "http://{address}/metrics/targets", refresh_interval: 1s}}]
"""

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus in PATH")


class Prometheus:
    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)

    def ask(self, query: str) -> list[Any]:
        answer = self._client.get("/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", (query, answer)
        result: list[Any] = answer["data"]["result"]
        return result

    def wait_for(self, query: str, count: int) -> list[Any]:
        deadline = time.monotonic() + 60
        while True:
            try:
                if len(found := self.ask(query)) == count:
                    return found
            except httpx.TransportError:
                pass  # it isn't up yet
            assert time.monotonic() < deadline, query
            time.sleep(0.2)

    def close(self) -> None:
        self._client.close()


@contextmanager
def prometheus(folder: Path, address: str) -> Iterator[Prometheus]:
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(address=address))
    port = free_port()
    argv = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([*argv, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        server = Prometheus(port)
        try:
            yield server
        finally:
            server.close()
            process.terminate()
            process.wait(30)


def test_prometheus_takes_it_all(tmp_path: Path) -> None:
    with running_berth(tmp_path) as berth, berth.client() as client:
        for name in ("one", "two"):
            body = {"model_name": "fake", "engine": "command", "name": name, "command": command()}
            client.post("/instances?wait=30", json=body)
        client.get("/proxy/one/v1/models")
        client.post("/v1/completions", json={"model": "none such"})
        with prometheus(tmp_path, f"127.0.0.1:{berth.port}") as server:
            server.wait_for("up == 1", 3)  # Berth, and by discovery both engines
            engines = server.wait_for('vllm:generation_tokens_total{job="berth"}', 2)
            assert {one["metric"]["instance"] for one in engines} == {"one", "two"}
            found = server.wait_for('vllm:generation_tokens_total{job="engines"}', 2)
            assert {(one["metric"]["instance"], one["metric"]["model"]) for one in found} == {
                ("one", "fake"),
                ("two", "fake"),
            }
            server.wait_for('fake_labelled{job="berth",exported_instance="its own"}', 2)
            (served,) = server.wait_for('berth_requests_total{instance="one"}', 1)
            assert served["metric"]["model"] == "fake"
            (refused,) = server.wait_for('berth_requests_total{instance=""}', 1)
            assert refused["metric"]["code"] == "404"
            server.wait_for('process_open_fds{model=""}', 1)
            for query in queries():
                server.ask(query)
    complaints = [
        line for line in (tmp_path / "prometheus.log").read_text().splitlines() if "level=error" in line
    ]
    assert complaints == []


def queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    raw = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    filled = [query.replace("$__rate_interval", "10s") for query in raw]
    return [query.replace("$model", ".*").replace("$instance", ".*") for query in filled]
