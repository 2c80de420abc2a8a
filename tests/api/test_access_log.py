"""The access log of a real Berth in both formats: one line per request, and never a key."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.berth_process import BerthProcess, running_berth
from tests.fake_engine import command

ADMIN, USER = "an-admin-key-0001", "a-user-key-00002"
STRANGER = "a-stranger-s-key"


def talk(berth: BerthProcess) -> None:
    """One request of every kind, each with its own id."""
    with berth.client() as client:

        def send(method: str, path: str, request_id: str, key: str = ADMIN, **more: Any) -> httpx.Response:
            headers = {"authorization": f"Bearer {key}", "x-request-id": request_id}
            return client.request(method, path, headers=headers, **more)

        body = {"model_name": "fake", "engine": "command", "name": "one", "command": command()}
        assert send("POST", "/instances?wait=30", "made", json=body).status_code == 201
        prompt = {"model": "fake", "prompt": "what-was-said", "max_tokens": 1}
        assert send("POST", "/v1/completions", "whole", USER, json=prompt).status_code == 200
        streamed = {**prompt, "stream": True}
        assert send("POST", "/v1/completions", "streamed", USER, json=streamed).status_code == 200
        assert send("GET", "/proxy/one/x%0Ay?secret=1", "odd").status_code == 200
        assert send("POST", "/v1/completions", "unknown", USER, json={"model": "x"}).status_code == 404
        assert send("GET", "/instances", "refused", STRANGER).status_code == 401


def check_secrets(output: str) -> None:
    for secret in (ADMIN, USER, STRANGER, "what-was-said", "secret=1"):
        assert secret not in output


def test_every_request_is_one_json_object_with_all_fields(tmp_path: Path) -> None:
    with running_berth(
        tmp_path, LOG_FORMAT="json", ACCESS_LOG="true", API_KEYS=USER, ADMIN_API_KEYS=ADMIN
    ) as berth:
        talk(berth)
        output = berth.output()
    check_secrets(output)
    lines = [json.loads(line) for line in output.splitlines()]
    access = [line for line in lines if line["logger"] == "berth.access"]
    by_id = {line["request_id"]: line for line in access}
    ours = [line["request_id"] for line in access if line["path"] != "/health/readiness"]
    assert ours == ["made", "whole", "streamed", "odd", "unknown", "refused"]
    for name in ("whole", "streamed"):
        line = by_id[name]
        assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/completions", 200)
        assert (line["instance"], line["model"], line["client"]) == ("one", "fake", "127.0.0.1")
        assert 0 < line["first_byte_seconds"] <= line["seconds"] < 30
        assert (line["prompt_tokens"], line["completion_tokens"]) == (0, 1)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", line["time"])
    assert "tokens_estimated" not in by_id["whole"]
    assert by_id["streamed"]["tokens_estimated"] is True  # its client asked for no usage
    assert by_id["whole"]["key"] != by_id["odd"]["key"] == by_id["made"]["key"]
    assert by_id["odd"]["path"] == "/proxy/one/x%0Ay"
    assert (by_id["unknown"]["status"], by_id["unknown"]["note"]) == (404, "refused by the gateway")
    assert (by_id["refused"]["status"], "key" in by_id["refused"]) == (401, False)


@pytest.mark.parametrize("settings", [{"ACCESS_LOG": "true"}, {"APP_DEBUG": "true"}, {}])
def test_text_lines_are_written_if_configured(tmp_path: Path, settings: dict[str, str]) -> None:
    with running_berth(tmp_path, API_KEYS=USER, ADMIN_API_KEYS=ADMIN, **settings) as berth:
        talk(berth)
        output = berth.output()
    check_secrets(output)
    found = re.findall(r'127\.0\.0\.1 "(\w+ /\S+)" (\d+) [\d.]+ ms (\S+?)((?:, .+)?)\n', output)
    rows = {request_id: (what, status, rest) for what, status, request_id, rest in found}
    if not settings:
        assert rows == {}
        return
    assert rows["whole"][:2] == ("POST /v1/completions", "200")
    assert re.fullmatch(", instance one, model fake, key [0-9a-f]{8}", rows["whole"][2])
    assert rows["odd"][0] == "GET /proxy/one/x%0Ay"
    assert rows["refused"][1] == "401"
