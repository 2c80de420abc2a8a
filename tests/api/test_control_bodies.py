"""Invalid bodies and queries of the control routes: each is refused by its field, none causes a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.berth_process import BerthProcess, running_berth
from tests.fake_engine import command

LONG = "x" * 900_000
NESTED = "[" * 900 + "]" * 900
DEEP = '{"a":' * 40 + "1" + "}" * 40
DEEPER = "[" * 100_000 + "]" * 100_000
DIGITS = "9" * 400
MORE_DIGITS = "9" * 5000

# Values as JSON text; each is invalid in every field of its type.
TEXTS = {
    "a lone surrogate": r'"\ud800"',
    "a lone surrogate within": r'"a\udfffb"',
    "a null": r'"a\u0000b"',
    "900 KB": json.dumps(LONG),
    "1025 bytes": json.dumps("x" * 1025),
    "1025 bytes of few characters": json.dumps("é" * 513, ensure_ascii=False),
    "nested": NESTED,
    "deeper": DEEPER,
    "a number": "5",
    "an infinite number": "1e400",
    "400 digits": DIGITS,
    "5000 digits": MORE_DIGITS,
    "not a number": "NaN",
}
NUMBERS = {
    "nested": NESTED,
    "deeper": DEEPER,
    "an infinite number": "1e400",
    "400 digits": DIGITS,
    "5000 digits": MORE_DIGITS,
    "not a number": "NaN",
    "infinity": "-Infinity",
    "text": json.dumps(LONG),
    "a lone surrogate": r'"\ud800"',
}
WITHIN = {
    "a lone surrogate": r'{"a": "\ud800"}',
    "a lone surrogate in a key": r'{"\udc00": "a"}',
    "a lone surrogate below": r'{"a": {"b": ["\ud800"]}}',
    "a null": r'{"a": "\u0000"}',
    "a null in a key": r'{"\u0000": "a"}',
    "900 KB": json.dumps({"a": LONG}),
    "900 KB of a key": json.dumps({LONG: "a"}),
    "70 KB in pieces": json.dumps({f"a{n}": "x" * 1000 for n in range(70)}),
    "nested": '{"a": ' + NESTED + "}",
    "40 deep": DEEP,
    "deeper": '{"a": ' + DEEPER + "}",
    "an infinite number": '{"a": 1e400}',
    "400 digits": '{"a": ' + DIGITS + "}",
    "5000 digits": '{"a": ' + MORE_DIGITS + "}",
    "minus 400 digits": '{"a": -' + DIGITS + "}",
    "not a number": '{"a": NaN}',
    "a list": "[1]",
}
LISTS = {
    "a lone surrogate": r'["\ud800"]',
    "a null": r'["a\u0000b"]',
    "900 KB": json.dumps([LONG]),
    "100,000 items": json.dumps(["x"] * 100_000),
    "nested": NESTED,
    "deeper": DEEPER,
    "numbers": "[1e400]",
    "text": '"x"',
}
CREATE = {"model_name": "fake", "engine": "command", "command": command(), "name": "one"}
FIELDS: list[tuple[str, str, dict[str, str]]] = [
    *(("POST /instances", name, TEXTS) for name in ("model_name", "engine", "name", "health_path")),
    ("POST /instances", "timeout", NUMBERS),
    ("POST /instances", "params", WITHIN),
    ("POST /instances", "env", WITHIN),
    ("POST /instances", "devices", LISTS),
    ("POST /instances", "command", LISTS),
    ("POST /instances", "stop_command", LISTS),
    *(("POST /instances", name, TEXTS) for name in ("runtime", "image", "gpus")),
    *(("POST /instances", name, LISTS) for name in ("volumes", "run_args")),
    ("PATCH /instances/kept", "timeout", NUMBERS),
    ("PATCH /instances/kept", "pinned", NUMBERS),
    ("PATCH /models/fake", "timeout", NUMBERS),
    ("PATCH /models/fake", "gpu_memory_utilization", NUMBERS),
    ("PATCH /models/fake", "max_model_len", NUMBERS),
    ("PATCH /models/fake", "params", WITHIN),
    ("PATCH /models/fake", "devices", LISTS),
    ("POST /models/pull", "model", TEXTS),
    ("POST /models/pull", "revision", TEXTS),
]
CASES = [(route, name, what, text) for route, name, values in FIELDS for what, text in values.items()]


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    folder = tmp_path_factory.mktemp("bodies")
    entry = {"engine": "command", "command": command(), "model": "fake"}
    (folder / "models.yaml").write_text(json.dumps({"models": {"fake": entry}}))
    with running_berth(folder, MODELS_FILE=str(folder / "models.yaml"), HF_HUB_OFFLINE="1") as berth:
        with berth.client() as client:
            kept = client.post("/instances", json={**CREATE, "name": "kept"}, params={"wait": 30})
            assert kept.status_code == 201, kept.text
        yield berth
        assert "Traceback" not in berth.output()


@pytest.fixture
def client(berth: BerthProcess) -> Iterator[httpx.Client]:
    with berth.client() as client:
        yield client


def send(client: httpx.Client, route: str, text: str, **query: str) -> httpx.Response:
    method, _, path = route.partition(" ")
    body = text.encode("utf-8", "surrogatepass")
    return client.request(
        method, path, content=body, headers={"content-type": "application/json"}, params=query
    )


def check_refusal(answer: httpx.Response, name: str) -> dict[str, Any]:
    assert answer.status_code in (400, 422), (answer.status_code, answer.text[:500])
    error: dict[str, Any] = answer.json()["error"]
    assert len(answer.content) < 2000
    assert name in error["message"], error
    assert str(error["param"]).split(".")[0] == name, error
    return error


@pytest.mark.parametrize(
    ("route", "name", "what", "text"), CASES, ids=[f"{one[0]} {one[1]}: {one[2]}" for one in CASES]
)
def test_a_bad_field_is_refused_by_name(
    client: httpx.Client, route: str, name: str, what: str, text: str
) -> None:
    fields = {key: json.dumps(value) for key, value in CREATE.items()} if route == "POST /instances" else {}
    if route == "POST /models/pull":
        fields = {"model": '"owner/name"'}
    fields[name] = text
    body = "{" + ", ".join(f'"{key}": {value}' for key, value in fields.items()) + "}"
    check_refusal(send(client, route, body), name)


@pytest.mark.parametrize("route", sorted({field[0] for field in FIELDS}))
@pytest.mark.parametrize(
    "text",
    [
        NESTED,
        DEEPER,
        "NaN",
        "1e400",
        MORE_DIGITS,
        r'"\ud800"',
        "{" * 900,
        b"\xff\xfe".decode("latin-1"),
        "{",
        "",
    ],
    ids=range(10),
)
def test_a_body_that_is_not_an_object_is_refused(client: httpx.Client, route: str, text: str) -> None:
    answer = send(client, route, text)
    assert answer.status_code in (400, 422), answer.text[:500]
    assert len(answer.content) < 2000


@pytest.mark.parametrize("route", sorted({field[0] for field in FIELDS}))
def test_a_field_without_a_valid_name_is_refused(client: httpx.Client, route: str) -> None:
    for key in (r'"\ud800"', json.dumps(LONG), r'"\u0000"'):
        answer = send(client, route, "{" + key + ": 1}")
        assert answer.status_code in (400, 422), answer.text[:500]
        assert len(answer.content) < 2000


QUERIES = [
    ("POST", "/instances/kept/start", "wait"),
    ("POST", "/instances/kept/restart", "wait"),
    ("POST", "/instances/kept/sleep", "level"),
    ("POST", "/instances/kept/stop", "force"),
    ("DELETE", "/instances/kept", "force"),
    ("GET", "/instances/kept/logs", "tail"),
    ("GET", "/instances/kept/logs", "follow"),
    ("GET", "/instances", "status"),
    ("GET", "/instances", "all"),
    ("POST", "/models/fake/start", "wait"),
    ("POST", "/models/fake/wake", "wait"),
    ("POST", "/models/fake/restart", "wait"),
    ("POST", "/models/fake/sleep", "level"),
    ("POST", "/models/fake/stop", "force"),
    ("GET", "/metrics", "engines"),
]


@pytest.mark.parametrize(("method", "path", "name"), QUERIES)
def test_a_bad_query_is_refused_by_name(client: httpx.Client, method: str, path: str, name: str) -> None:
    for value in (DIGITS, f"-{DIGITS}", MORE_DIGITS, "1e400", "nan", "\ud800", "a\0b"):
        query = f"{name}={_quoted(value)}"
        answer = client.request(method, f"{path}?{query}")
        check_refusal(answer, name)


def _quoted(value: str) -> str:
    return "".join(f"%{byte:02x}" for byte in value.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("path", ["/instances/%s", "/models/%s", "/v1/models/%s", "/proxy/%s/v1/models"])
def test_an_impossible_name_is_not_found(client: httpx.Client, path: str) -> None:
    for name in ("%00", "%ff", "%ed%a0%80", "x" * 5000, "%2e%2e", "a%23b"):
        assert client.get(path % name).status_code == 404


@pytest.mark.parametrize(
    "name", ["x" * 1000, f"{'x' * 300}/{'y' * 300}", "~nobody-of-that-name/x", "./" + "x" * 999]
)
def test_a_strange_model_name_is_not_berths_error(client: httpx.Client, name: str) -> None:
    """Longer than a file name may be, but within the limit for names."""
    for engine in ("engine", "vllm", "command"):
        body = {"model_name": name, "engine": engine, "name": "long"}
        if engine == "command":
            body["command"] = command()  # type: ignore[assignment]
        answer = client.post("/instances", json=body, params={"wait": 5})
        assert answer.status_code < 500 or answer.json()["error"]["code"] != "internal_error", answer.text
        assert "in Berth itself" not in answer.text
        client.delete("/instances/long", params={"force": "true"})
    assert client.post("/models/pull", json={"model": name}).status_code in (200, 422)


def test_params_within_the_limits_are_checked_by_the_engine(client: httpx.Client) -> None:
    params = {
        "a": {"b": [1, -(2**63), 2**64 - 1, 1e300, None, True, "é\U0001f600"]},
        "x" * 1000: "y" * 60_000,
    }
    answer = client.post("/instances", json={**CREATE, "params": params})
    assert "takes no params" in check_refusal(answer, "params")["message"]


@pytest.mark.parametrize("path", ["/a\r\nb: c", "/a b", "/\x7f", "/ä", "//", "/a#b"])
def test_an_invalid_health_path_is_refused(client: httpx.Client, path: str) -> None:
    answer = client.post("/instances", json={**CREATE, "health_path": path}, params={"wait": 10})
    if path in ("//", "/a#b", "/ä"):
        assert "in Berth itself" not in answer.text
        client.delete("/instances/one", params={"force": "true"})
        return
    check_refusal(answer, "health_path")


def test_values_at_the_limits_are_accepted(client: httpx.Client) -> None:
    """Assert that Berth does not refuse it: it works, or the engine decides."""
    body = {
        **CREATE,
        "env": {"LONG": "x" * 60_000},
        "timeout": 1e300,
    }
    answer = client.post("/instances", json=body, params={"wait": 30})
    assert answer.status_code == 201, answer.text[:500]
    assert client.get("/instances/one").json()["status"] == "running"
    assert client.patch("/instances/one", json={"timeout": 1e300}).status_code == 200
    client.delete("/instances/one", params={"force": "true"})


@pytest.mark.parametrize(
    "text",
    [
        DIGITS,
        f"-{DIGITS}",
        MORE_DIGITS,
        "1e400",
        "NaN",
        r'"nan"',
        '"1e400"',
        json.dumps("1h" * 100_000 + "x"),
    ],
)
def test_a_keep_alive_that_is_not_a_duration_is_refused(client: httpx.Client, text: str) -> None:
    body = '{"model": "fake", "prompt": "a", "max_tokens": 1, "keep_alive": ' + text + "}"
    answer = send(client, "POST /v1/completions", body)
    assert answer.status_code == 400, answer.text[:300]
    assert "keep_alive" in answer.text or "JSON" in answer.text
    assert len(answer.content) < 2000


def test_a_model_that_can_never_be_found_is_refused_at_once_with_the_names_that_exist(
    client: httpx.Client,
) -> None:
    for name, engine, hint in (
        ("no-such", "engine", "there are berth-demo, fake"),
        ("org/berth-dmo", "engine", "did you mean 'berth-demo'?"),
        ("/no/such", "engine", "there are berth-demo, fake"),
    ):
        answer = client.post("/instances", json={"model_name": name, "engine": engine})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model_name")
        assert error["message"].endswith(hint), error
    listed = client.get("/instances", params={"all": "true"}).json()["data"]
    assert not {"no-such", "org/berth-dmo"} & {one["model_name"] for one in listed}
