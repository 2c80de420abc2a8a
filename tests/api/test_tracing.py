"""Trace headers go through to the engine as they came, on every way through Berth."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.berth_process import running_berth
from tests.fake_engine import command

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("path", ["/proxy/one/headers", "/v1/headers"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_trace_headers_reach_the_engine(tmp_path: Path, path: str, is_stream: bool) -> None:
    with running_berth(tmp_path) as berth, berth.client() as client:
        body = {"model_name": "fake", "engine": "command", "name": "one", "command": command()}
        client.post("/instances?wait=30", json=body)
        headers = {"traceparent": TRACE, "tracestate": "vendor=1"}
        answer = client.post(path, json={"model": "fake", "stream": is_stream}, headers=headers).json()
    assert (answer["traceparent"], answer["tracestate"]) == (TRACE, "vendor=1")
