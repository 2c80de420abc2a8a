"""`python -m engine` detects that a checkpoint pools."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx

from tests.engine.pooling.tiny_poolers import make_pooler
from tests.engine.server.serving import WAIT_S
from tests.engine.server.test_server_process import port_of, process, wait_ready


def test_a_process_serves_an_encoder_and_stops_with_0(tmp_path: Path) -> None:
    directory, log = make_pooler("bert-cross", tmp_path), tmp_path / "log"
    words = ["--model", str(directory), "--port", "0", "--pooler-config", '{"logit_mean": 1}']
    with (
        process(*words, log=log) as child,
        httpx.Client(base_url=f"http://127.0.0.1:{port_of(log)}", timeout=WAIT_S, trust_env=False) as client,
    ):
        wait_ready(client, child)
        answer = client.post("/rerank", json={"query": "a", "documents": ["b", "c"]})
        assert len(answer.json()["results"]) == 2
        child.send_signal(signal.SIGTERM)
        assert child.wait(WAIT_S) == 0
    assert "Traceback" not in log.read_text()


def test_a_process_that_can_not_pool_ends_with_a_reason(tmp_path: Path) -> None:
    directory, log = make_pooler("bert", tmp_path), tmp_path / "log"
    words = ["--model", str(directory), "--port", "0", "--runner", "generate"]
    with process(*words, log=log) as child:
        assert child.wait(WAIT_S) == 2
    assert "bad arguments: BertModel generates no text: it needs --runner pooling." in log.read_text()
