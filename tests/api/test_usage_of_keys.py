"""`GET /usage` of a real Berth: each key's tokens per model, kept across a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from api.access.keys import key_id_of
from tests.berth_process import BerthProcess, running_berth
from tests.fake_engine import command

ADMIN, ONE, TWO = "an-admin-key-0001", "a-user-key-00001", "a-user-key-00002"


def usage(berth: BerthProcess) -> dict[tuple[str, str], dict[str, Any]]:
    with berth.client() as client:
        answer = client.get("/usage", headers={"authorization": f"Bearer {ADMIN}"})
    assert answer.status_code == 200, answer.text
    return {(one["key_id"], one["model"]): one for one in answer.json()["data"]}


def test_tokens_are_counted_by_key_and_model_across_restarts(tmp_path: Path) -> None:
    settings = {"API_KEYS": f"{ONE},{TWO}", "ADMIN_API_KEYS": ADMIN, "STATE_DIR": str(tmp_path / "state")}
    prompt = {"model": "fake", "prompt": "x"}
    with running_berth(tmp_path, **settings) as berth, berth.client() as client:
        body = {"model_name": "fake", "engine": "command", "name": "one", "command": command()}
        client.post("/instances?wait=30", json=body, headers={"authorization": f"Bearer {ADMIN}"})
        for key, more in (
            (ONE, {"max_tokens": 3}),
            (ONE, {"max_tokens": 4, "stream": True}),
            (TWO, {"max_tokens": 5, "delay": 0.1}),
        ):
            answer = client.post(
                "/v1/completions", json=prompt | more, headers={"authorization": f"Bearer {key}"}
            )
            assert answer.status_code == 200
        client.get("/proxy/one/x", headers={"authorization": f"Bearer {TWO}"})  # no tokens, no usage
        before = usage(berth)
    assert {key: (one["requests"], one["completion_tokens"]) for key, one in before.items()} == {
        (key_id_of(ONE), "fake"): (2, 7),
        (key_id_of(TWO), "fake"): (1, 5),
    }
    with running_berth(tmp_path, **settings) as berth:
        assert usage(berth) == before
