"""One HTTP request, however many sequences it has, leaves capacity for other requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.core.types import EngineRequest
from engine.execution.build import build_core
from engine.text.tokenizer import load_tokenizer
from tests.engine.server.in_process import CHAT, COMPLETIONS, App, app_in_process
from tests.engine.server.serving import Running, running
from tests.engine.server.test_streams import events

DEMO = Path(__file__).resolve().parents[3] / "models" / "berth-demo"
NUM_SEATS = 64
HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS: dict[str, Any] = {"max_tokens": 1000, "ignore_eos": True, "stream": True, "temperature": 1}

LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    "choices of a chat": (CHAT, {"messages": HELLO, "n": 5}),
    "prompts times choices": (COMPLETIONS, {"prompt": ["a", "b", "c"], "n": 2}),
    "beams": (COMPLETIONS, {"prompt": ["a", "b"], "n": 2, "use_beam_search": True}),
    "conversations": (f"{CHAT}/batch", {"messages": [HELLO, HELLO, HELLO]}),
}


@pytest.fixture(scope="module")
async def app(fake_model: Path) -> AsyncIterator[App]:
    async with app_in_process(fake_model) as app:
        app.will_say("Hello")
        yield app


@pytest.mark.parametrize("kind", LARGE)
async def test_all_sequences_of_a_request_belong_to_one_group(
    app: App, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another request has its own group, even with the same id."""
    asked: list[EngineRequest] = []
    stream = app.service.engine.stream

    def seen(request: EngineRequest, **options: Any) -> Any:
        asked.append(request)
        return stream(request, **options)

    monkeypatch.setattr(app.service.engine, "stream", seen)
    path, body = LARGE[kind]
    groups = []
    for _ in range(2):
        await app.ask(path, **body, max_tokens=3, request_id="the-same")
        assert len(asked) >= 2
        assert len({request.group for request in asked}) == 1
        groups.append(asked[0].group)
        asked.clear()
    assert len({*groups, ""}) == 3


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    config = EngineConfig(model=DEMO, dtype="float32", device="cpu", max_num_seqs=NUM_SEATS, num_threads=1)
    ends = load_tokenizer(DEMO).end_token_ids
    with running(
        DEMO, lambda: build_core(config, eos_token_ids=ends), max_num_seqs=NUM_SEATS, shutdown_timeout_s=0.0
    ) as server:
        yield server


@pytest.mark.parametrize(
    "large",
    [{"prompt": "Once", "n": NUM_SEATS}, {"prompt": [f"{number} and" for number in range(3 * NUM_SEATS)]}],
    ids=["choices", "prompts"],
)
def test_a_small_request_finishes_while_a_large_one_fills_the_engine(
    demo: Running, large: dict[str, Any]
) -> None:
    """The large request has long outputs, none of which has ended by then."""
    num_sequences = max(large.get("n", 1), len(large["prompt"]))
    with demo.http() as client, client.stream("POST", COMPLETIONS, json={**large, **ENDLESS}) as response:
        stream = events(response)
        while demo.engine.stats().num_requests_running < NUM_SEATS:
            next(stream)
        with demo.http() as other:
            answer = other.post(COMPLETIONS, json={"prompt": "Hello", "max_tokens": 2})
        assert answer.status_code == 200, answer.text
        assert demo.engine.num_unfinished == num_sequences
    demo.wait_idle()
