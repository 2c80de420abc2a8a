"""Nothing that Berth's own description invites to, or forbids, is Berth's own error; nor is any header.

A few dozen of each here; thousands with `make fuzz`.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from api.control.app import ROUTERS
from api.control.forwarded import with_forwarded
from api.http.dialects import speaks_ollama
from tests.berth_process import BerthProcess, running_berth
from tests.fake_engine import command
from tests.fake_hub import running_hub

NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "16"))
IS_LONG = NUM_EXAMPLES > 100
ENDLESS = {"/events", "/models/sse", "/logs/stream", "/logs/stream/{name}"}
MAX_WAIT_S = 0.2
# The only legitimate 5xx: the model is unavailable now, and the code says why.
HONEST = {"instance_failed", "instance_starting", "no_capacity"}

FEW = settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    database=None,
    derandomize=not IS_LONG,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.timeout(36000 if IS_LONG else 600)


def document() -> dict[str, Any]:
    """Berth's description of its control routes."""
    app = FastAPI()
    for router in ROUTERS:
        app.include_router(router)
    return app.openapi()


def questions() -> list[tuple[str, str, GenerationMode]]:
    found = []
    for path, methods in document()["paths"].items():
        for method, operation in methods.items() if path not in ENDLESS else ():
            found.append((method, path, GenerationMode.POSITIVE))
            in_query = any(one["in"] == "query" for one in operation.get("parameters", ()))
            if "requestBody" in operation or in_query:  # any text is a path
                found.append((method, path, GenerationMode.NEGATIVE))
    return found


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    """With an instance `a`, a nearly empty hub, and no model that starts slowly."""
    folder = tmp_path_factory.mktemp("fuzzing")
    (folder / "models").mkdir()
    with running_hub() as hub:
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "hub"),
            "HF_HUB_CACHE": str(folder / "hub"),
            "MODEL_DIRS": str(folder / "models"),
            "MODELS_FILE": str(folder / "models.yaml"),
            "STATE_DIR": str(folder / "state"),
            "DEFAULT_MODEL": "there is none",
            "DRAIN_TIMEOUT": "1",
            "STOP_GRACE": "1",
        }
        with running_berth(folder, **settings) as berth:
            create(berth)
            yield berth
            assert "Traceback" not in berth.output()


def create(berth: BerthProcess) -> None:
    with berth.client() as client:
        if client.get("/instances/a").status_code == 404:
            spec = {"name": "a", "model_name": "a", "engine": "command", "command": command()}
            created = client.post("/instances?wait=30", json=spec)
            assert created.status_code == 201, created.text


def made_harmless(case: Any, known: bool) -> None:
    """Never run random commands or wait long; some requests use existing names."""
    if isinstance(case.body, dict) and isinstance(case.body.get("command"), list):
        case.body["command"] = command()
    wait = (case.query or {}).get("wait")
    if isinstance(wait, int | float) and wait > MAX_WAIT_S:
        case.query["wait"] = MAX_WAIT_S
    if "follow" in (case.query or {}):
        del case.query["follow"]  # it would never end
    for name in ("instance_id", "name") if known else ():
        if name in (case.path_parameters or {}):
            case.path_parameters[name] = "a"


@pytest.mark.parametrize(("method", "path", "mode"), questions(), ids=lambda one: getattr(one, "value", one))
def test_no_request_within_or_outside_the_schema_breaks_berth(
    berth: BerthProcess, method: str, path: str, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_dict(document())
    schema.config.update(base_url=berth.url)
    operation = schema[path][method]
    create(berth)

    @FEW
    @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
    def ask(case: Any, known: bool) -> None:
        made_harmless(case, known)
        response = case.call(timeout=60)
        assert "Traceback" not in response.text
        if response.status_code == 501:  # of llama.cpp's routes for other engines
            assert response.json()["error"]["type"] == "not_supported_error"
        elif speaks_ollama(path.encode()) and response.status_code >= 400:  # in Ollama's shape
            assert response.status_code in (*range(400, 500), 503), (response.status_code, response.text)
            assert isinstance(response.json()["error"], str), response.text
        elif response.status_code >= 500:
            assert response.status_code == 503, (response.status_code, response.text)
            assert response.json()["error"]["code"] in HONEST
        elif response.status_code >= 400:
            error = response.json()["error"]
            assert error["message"] and error["type"], response.text

    ask()


def test_all_served_routes_are_fuzzed(berth: BerthProcess) -> None:
    with berth.client() as client:
        served = client.get("/openapi.json").json()["paths"]
    ollama = ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings")
    forwarded = with_forwarded({"paths": {}}, ["/generate", *ollama])["paths"]
    assert set(served) - set(forwarded) == set(document()["paths"])


KNOWN_NAMES = """
content-type content-encoding accept authorization connection expect range te trailer upgrade origin cookie
x-request-id x-forwarded-for x-forwarded-host last-event-id cache-control traceparent tracestate
idempotency-key sec-websocket-key
"""
KNOWN_TARGETS = """
/v1/completions /v1/completions?model=%ff /v1/models /v1/models/%00 /v1/ /models/%2e%2e /generate
/proxy/a/x /proxy/%ff/x /proxy/ /instances /health / * // /?%
"""
NAMES = st.one_of(
    st.sampled_from(KNOWN_NAMES.split()), st.from_regex(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,40}", fullmatch=True)
)
VALUES = st.one_of(
    st.sampled_from(
        ["chunked", "gzip", "upgrade", "websocket", "Bearer", "Bearer \xff", "100-continue", "-1"]
    ),
    st.sampled_from(["multipart/form-data; boundary=", "application/json; charset=x", "close, x-request-id"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=200),
)
TARGETS = st.one_of(st.sampled_from(KNOWN_TARGETS.split()), st.from_regex(r"/[!-~]{0,60}", fullmatch=True))
BODIES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(["a", ["a"], None, {"a": 1}]).map(lambda model: json.dumps({"model": model}).encode()),
    st.sampled_from([b"[]", b"1", b"nul", b'{"model": "a", "stream": 1}', b'{"model": "\\ud800"}']),
)


def test_no_request_line_header_or_body_breaks_berth(berth: BerthProcess) -> None:
    create(berth)

    @settings(FEW, max_examples=10 * NUM_EXAMPLES)
    @given(
        method=st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "BREW"]),
        target=TARGETS,
        headers=st.lists(st.tuples(NAMES, VALUES), max_size=8),
        body=BODIES,
    )
    def ask(method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> None:
        status, answer = send(berth.port, method, target, headers, body)
        is_honest = status == 503 and json.loads(answer)["error"]["code"] in HONEST
        assert status < 500 or is_honest, (status, answer)
        assert b"Traceback" not in answer

    ask()


def send(
    port: int, method: str, target: str, headers: list[tuple[str, str]], body: bytes
) -> tuple[int, bytes]:
    """Send one raw request; 0 if the server only closed the connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    lines = [f"{method} {target} HTTP/1.1", f"host: 127.0.0.1:{port}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    try:
        connection.connect()
        connection.sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        response = http.client.HTTPResponse(connection.sock, method=method)
        response.begin()
        return response.status, response.read()
    except (http.client.HTTPException, ConnectionError):
        return 0, b""
    finally:
        connection.close()
