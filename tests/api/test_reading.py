"""Reads neither start nor wake an engine: an image on any page is a GET."""

from __future__ import annotations

from pathlib import Path

from tests.api.test_gateway import ask, berth_with, client_of, replicas


def test_a_get_starts_and_wakes_nothing(tmp_path: Path) -> None:
    with berth_with(tmp_path, {}) as berth, client_of(berth) as client:
        for method in ("GET", "HEAD", "OPTIONS"):
            for path in ("/v1/completions?model=berth-demo", "/v1/responses/r1?model=berth-demo"):
                assert client.request(method, path).status_code == 409
        error = client.get("/v1/completions?model=berth-demo").json()["error"]
        assert error["code"] == "instance_not_running" and "POST" in error["message"]
        assert client.get("/instances?all=true").json()["data"] == []

        assert ask(client, "berth-demo").status_code == 200
        (record,) = replicas(client, "berth-demo")
        assert client.get("/v1/responses/none?model=berth-demo").status_code == 404, "the engine responds"
        assert client.post("/models/berth-demo/sleep").status_code == 200
        own = f"/proxy/{record['instance_id']}/v1/models"
        for _ in range(3):  # on one connection: also by the fast path
            assert client.get(own).json()["data"][0]["id"] == "berth-demo", "it responds asleep"
            assert client.head(own).status_code in (200, 405)
        assert client.get("/models/berth-demo").json()["state"] == "sleeping"
        assert client.get("/v1/completions?model=berth-demo").status_code == 409
        assert client.get("/models/berth-demo").json()["state"] == "sleeping"
        assert ask(client, "berth-demo").status_code == 200
        assert client.get("/models/berth-demo").json()["state"] == "running"
