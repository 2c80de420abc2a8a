"""A model that is asked for between being sent to sleep and sleeping."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.api.test_gateway import ask, berth_with, client_of, replicas


def test_who_asks_while_a_model_falls_asleep_gets_the_same_replica(tmp_path: Path) -> None:
    with (
        berth_with(tmp_path, {}) as berth,
        client_of(berth) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        assert ask(client, "berth-demo").status_code == 200
        (record,) = replicas(client, "berth-demo")
        long = {"model": "berth-demo", "prompt": "a", "max_tokens": 300, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/completions", json=long) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data:")
            put_to_sleep = pool.submit(client.post, "/models/berth-demo/sleep")
            while client.get("/models/berth-demo").json()["status"] == "running":
                time.sleep(0.01)
            assert client.get("/models/berth-demo").json()["in_flight"] == 1  # it waits for this stream
            assert ask(client, "berth-demo").status_code == 200
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert put_to_sleep.result(timeout=30).status_code == 200
        assert [one["pid"] for one in replicas(client, "berth-demo")] == [record["pid"]]
