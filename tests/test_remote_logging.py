"""A real Berth's log lines arrive at a syslog server and at a collector as in its own log."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.berth_process import BerthProcess, running_berth
from tests.collector import Collector


def test_every_line_arrives_at_both_sinks(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Collector().running() as collector:
        settings = {
            "LOG_SYSLOG": f"tcp://127.0.0.1:{server.getsockname()[1]}",
            "LOG_OTLP": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "ACCESS_LOG": "true",
            "LOG_FORMAT": "json",
        }
        with running_berth(tmp_path, **settings) as berth, berth.client() as client:
            for number in range(300):
                client.get("/version", headers={"x-request-id": f"id-{number}"})
        server.settimeout(10)
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as stream:
            sent = [json.loads(line[line.index(b"{") :]) for line in stream]
    kept = [json.loads(line) for line in (tmp_path / "berth.log").read_text().splitlines()]
    assert sent == kept
    assert {line["request_id"] for line in kept if "request_id" in line} >= {f"id-{n}" for n in range(300)}
    assert [record["body"] for record in collector.log_records] == [line["message"] for line in kept]


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("LOG_SYSLOG", "example.org:514", "must be udp://host:port, tcp://host:port or the path"),
        ("LOG_OTLP", "true", "LOG_OTLP=true: needs OTEL_EXPORTER_OTLP_ENDPOINT"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "must be the URL of a collector"),
    ],
)
def test_an_invalid_setting_is_one_line_and_status_2(
    tmp_path: Path, setting: str, value: str, said: str
) -> None:
    berth = BerthProcess(tmp_path, **{setting: value})
    try:
        assert berth.wait() == 2
        (line,) = berth.output().splitlines()
    finally:
        berth.close()
    assert said in line and setting in line
