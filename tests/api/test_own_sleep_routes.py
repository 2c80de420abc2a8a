"""An engine put to sleep by its own route: Berth knows, and the next request wakes it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.api.test_gateway import ask, berth_with, client_of, replicas
from tests.berth_process import BerthProcess

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    with berth_with(tmp_path_factory.mktemp("asleep"), {}) as berth:
        yield berth


def test_the_sleep_is_noticed_at_once_and_the_next_request_wakes_it(berth: BerthProcess) -> None:
    with client_of(berth) as client:
        before = ask(client, "berth-demo", temperature=0).json()["choices"]
        (record,) = replicas(client, "berth-demo")
        own = f"/proxy/{record['instance_id']}"

        def status() -> tuple[str, int | None]:
            now = client.get(f"/instances/{record['instance_id']}").json()
            assert (now["pid"], now["restarts"]) == (record["pid"], 0)
            return now["status"], now["sleep_level"]

        def sleep(route: str = "/sleep?level=1") -> None:
            client.post(own + route).raise_for_status()

        for level in (1, 2):
            sleep(f"/sleep?level={level}")
            assert status() == ("sleeping", level)
            assert client.get("/models/berth-demo").json()["state"] == "sleeping"
            assert ask(client, "berth-demo", temperature=0).json()["choices"] == before, "by name"
            assert status() == ("running", None)

        sleep("/sl%65ep")
        by_id = client.post(f"{own}/v1/completions", json={"model": "berth-demo", "prompt": "a"})
        assert by_id.status_code == 200, "by its id"

        sleep()
        assert client.get(f"{own}/is_sleeping").json() == {"is_sleeping": True}
        sleep("/sleep?level=2")
        assert status() == ("sleeping", 2), "neither the query nor the sleep has woken it"
        assert client.post(f"{own}/wake_up").status_code == 200
        assert status() == ("running", None)
        assert client.get(f"{own}/is_sleeping").json() == {"is_sleeping": False}

        refused = client.post(f"{own}/sleep?level=7")
        assert refused.status_code == 400
        assert status() == ("running", None), "an engine that has refused is awake"


def test_an_engine_found_asleep_is_woken_by_the_request_after_that(berth: BerthProcess) -> None:
    """The response to /sleep was not seen: its client had disconnected."""
    with client_of(berth) as client:
        assert ask(client, "berth-demo").status_code == 200
        (record,) = replicas(client, "berth-demo")
        key = next(
            line.partition(b"=")[2].decode()
            for line in Path(f"/proc/{record['pid']}/environ").read_bytes().split(b"\0")
            if line.startswith(b"VLLM_API_KEY=")
        )
        engine = f"http://127.0.0.1:{record['port']}"
        httpx.post(f"{engine}/sleep", headers={"Authorization": f"Bearer {key}"}, trust_env=False)
        assert ask(client, "berth-demo").status_code in (200, 503)
        deadline = time.monotonic() + 20
        while (answer := ask(client, "berth-demo")).status_code != 200:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.05)
        (now,) = replicas(client, "berth-demo")
        assert (now["pid"], now["status"]) == (record["pid"], "running")
