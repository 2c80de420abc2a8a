"""Why an engine failed: admins get its log, request keys only class and id."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from tests.berth_process import BerthProcess, running_berth
from tests.fake_engine import command
from tests.successive_berths import Berths, end

SECRET = "hf_this-stood-in-the-log"
KEYS = {"API_KEYS": "user-key", "ADMIN_API_KEYS": "admin-key"}
CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}


def berth_with_a_model_that_fails(folder: Path, **settings: str) -> Any:
    failing = {"command": command("--fail-with", f"loading with token {SECRET}")}
    (folder / "models.yaml").write_text(json.dumps({"models": {"failing": failing}}))
    return running_berth(folder, MODELS_FILE=str(folder / "models.yaml"), STREAM_KEEPALIVE="0.05", **settings)


def bodies(berth: BerthProcess, key: str) -> dict[str, str]:
    """The responses of all routes to an engine that can't be started."""
    asked: list[tuple[str, str, dict[str, Any] | None]] = [
        ("POST", "/v1/chat/completions", CHAT | {"model": "failing"}),
        ("POST", "/v1/chat/completions", CHAT | {"model": "failing", "stream": True}),
        ("POST", "/v1/messages", CHAT | {"model": "failing"}),
        ("POST", "/v1/messages", CHAT | {"model": "failing", "stream": True}),
        ("POST", "/generate", {"model": "failing", "prompt": "x"}),
        ("POST", "/proxy/bad/v1/chat/completions", CHAT),
        ("POST", "/proxy/bad/v1/messages", CHAT),
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/failing", None),
    ]
    found = {}
    with berth.client() as client:
        for method, path, body in asked:
            answer = client.request(method, path, json=body, headers={"authorization": f"Bearer {key}"})
            found[f"{method} {path} {'stream' if body and body.get('stream') else ''}"] = answer.text
    return found


def make_bad(berth: BerthProcess, headers: dict[str, str]) -> None:
    bad = {"name": "bad", "model_name": "bad", "engine": "command"}
    bad["command"] = command("--fail-with", f"loading with token {SECRET}")  # type: ignore[assignment]
    with berth.client() as client:
        made = client.post("/instances?wait=30", json=bad, headers=headers)
    assert made.status_code == 503 and SECRET in made.text


def test_a_request_key_gets_no_log_line(tmp_path: Path) -> None:
    with berth_with_a_model_that_fails(tmp_path, **KEYS) as berth:
        make_bad(berth, {"authorization": "Bearer admin-key"})
        public = bodies(berth, "user-key")
        whole = bodies(berth, "admin-key")
    assert [name for name, body in public.items() if SECRET in body] == []
    for name, body in public.items():
        if "models" not in name:
            assert ("crashed" in body and "GET /instances/" in body) or "(crashed)" in body, (name, body)
    assert all(SECRET in whole[name] for name in whole if "POST" in name), whole


def test_the_last_start_s_failure_is_the_model_s_problem_until_one_succeeds(tmp_path: Path) -> None:
    flag = tmp_path / "repaired"
    starts = [
        "/bin/sh",
        "-c",
        f'[ -e {flag} ] || {{ echo {SECRET}; exit 1; }}; exec "$@"',
        "sh",
        *command("--slow-start", "1"),
    ]

    def problems(client: httpx.Client, key: str) -> list[str | None]:
        headers = {"authorization": f"Bearer {key}"}
        entries = {entry["id"]: entry for entry in client.get("/v1/models", headers=headers).json()["data"]}
        return [entries[name]["problem"] for name in ("m", "nick")]

    entry = {"command": starts, "aliases": ["nick"]}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": {"m": entry}}))
    settings = {"MODELS_FILE": str(tmp_path / "models.yaml"), **KEYS}
    with running_berth(tmp_path, **settings) as berth, berth.client() as client:
        admin = {"authorization": "Bearer admin-key"}

        def start(wait_s: float = 30) -> int:
            answer = client.post("/models/m/start", params={"wait": wait_s}, headers=admin)
            return answer.status_code

        assert problems(client, "admin-key") == [None, None]
        assert start() == 503
        for problem in problems(client, "user-key"):
            assert problem is not None and problem.startswith("failed (crashed); ") and SECRET not in problem
        for problem in (
            *problems(client, "admin-key"),
            client.get("/models/m", headers=admin).json()["problem"],
        ):
            assert (
                problem is not None
                and problem.startswith("the engine exited with code 1 before")
                and SECRET in problem
            )
        (tmp_path / "models.yaml").write_text(json.dumps({"models": {"m": entry | {"timeout": 77}}}))
        client.post("/reload", headers=admin).raise_for_status()
        assert problems(client, "admin-key") == [None, None], "the entry may have been corrected"
        assert start() == 503
        flag.touch()
        assert start(0.2) == 200, "it is starting: the failure is of an earlier start"
        assert problems(client, "admin-key")[0] is not None
        assert start() == 200
        assert problems(client, "admin-key") == [None, None]


def test_it_is_so_after_a_restart_of_berth_unless_the_entry_has_changed(tmp_path: Path) -> None:
    file, entry = tmp_path / "models.yaml", {"command": command("--fail-with", SECRET)}
    file.write_text(json.dumps({"models": {"m": entry}}))
    with closing(Berths(tmp_path)) as berths:
        berth = berths.begin(MODELS_FILE=str(file))
        with berth.client() as client:
            assert client.post("/models/m/start", params={"wait": 30}).status_code == 503
            before = client.get("/models/m").json()
        assert before["state"] == "failed" and SECRET in before["problem"]
        end(berth)
        berth = berths.begin(MODELS_FILE=str(file))
        with berth.client() as client:
            record = client.get("/models/m").json()
            assert {key: record[key] for key in ("state", "problem", "error")} == {
                key: before[key] for key in ("state", "problem", "error")
            }
        end(berth)
        file.write_text(json.dumps({"models": {"m": entry | {"timeout": 77}}}))
        with berths.begin(MODELS_FILE=str(file)).client() as client:
            record = client.get("/models/m").json()
            assert (record["state"], record["problem"], record["error"]) == ("stopped", None, None)


def test_an_instance_that_could_not_start_is_its_models_problem(tmp_path: Path) -> None:
    with running_berth(tmp_path) as berth, berth.client() as client:
        make_bad(berth, {})
        record = client.get("/models/bad").json()
        assert (record["state"], record["error"]["class"]) == ("failed", "crashed")
        assert SECRET in record["problem"]
        client.post("/instances/bad/stop").raise_for_status()
        record = client.get("/models/bad").json()
        assert (record["state"], record["problem"], record["error"]) == ("stopped", None, None)


def test_without_keys_local_callers_get_the_log(tmp_path: Path) -> None:
    with berth_with_a_model_that_fails(tmp_path) as berth:
        make_bad(berth, {})
        whole = bodies(berth, "any")
    assert all(SECRET in whole[name] for name in whole if "POST" in name), whole


def test_a_request_key_that_waits_for_a_failing_start_gets_none(tmp_path: Path) -> None:
    late = ["/bin/sh", "-c", f"sleep 1; echo {SECRET}; exit 1"]
    with running_berth(tmp_path, **KEYS) as berth, berth.client() as client:
        spec = {"name": "late", "model_name": "late", "engine": "command", "command": late}
        client.post("/instances", json=spec, headers={"authorization": "Bearer admin-key"})
        headers = {"authorization": "Bearer user-key"}
        answer = client.post("/proxy/late/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 503
    assert SECRET not in answer.text and "crashed" in answer.text and "/instances/late" in answer.text
