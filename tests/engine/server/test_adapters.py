"""LoRA adapters are models of their own, loaded and unloaded while the server runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from engine.config import AdapterPath, ServerConfig
from engine.core.adapter import Adapter
from engine.core.batch import Batch
from engine.errors import CheckpointError
from engine.server.app.serve import Loading, _load_and_watch
from engine.server.generation.service import GenerationService
from engine.text.tokenizer import Tokenizer
from tests.engine.server.in_process import App, app_in_process

pytestmark = pytest.mark.anyio


@pytest.fixture
async def app(fake_model: Path) -> AsyncIterator[App]:
    async with app_in_process(fake_model, takes_adapters=True) as app:
        app.will_say("yes")
        yield app


async def load(app: App, name: str, **more: object) -> tuple[int, str]:
    body = {"lora_name": name, "lora_path": f"/adapters/{name}", **more}
    response = await app.http.post("/v1/load_lora_adapter", json=body)
    return response.status_code, response.text


def adapter_of(app: App) -> str | None:
    """That of the last step."""
    adapter = app.runner.last_batch.sequences[0].adapter
    return None if adapter is None else adapter.name


async def test_an_adapter_is_a_model_until_it_is_unloaded(app: App) -> None:
    assert await load(app, "sql") == (200, "Success: LoRA adapter 'sql' added successfully.")
    cards = {card["id"]: card for card in (await app.http.get("/v1/models")).json()["data"]}
    assert list(cards) == ["fake", "sql"]
    assert (cards["sql"]["parent"], cards["sql"]["root"]) == ("fake", "sql")
    assert (await app.http.get("/v1/models/sql")).json()["parent"] == "fake"
    answer = await app.ask("/v1/completions", model="sql", prompt="a")
    assert answer["model"] == "sql"
    assert adapter_of(app) == "sql"
    await app.ask("/v1/completions", model="fake", prompt="a")
    assert adapter_of(app) is None
    response = await app.http.post("/v1/unload_lora_adapter", json={"lora_name": "sql", "lora_int_id": None})
    assert response.text == "Success: LoRA adapter 'sql' removed successfully."
    assert (await app.post("/v1/completions", model="sql", prompt="a"))[0] == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 9}),
        ("/v1/completions", {"prompt": "a", "use_beam_search": True, "n": 2, "max_tokens": 2}),
    ],
)
async def test_requests_of_every_protocol_may_name_one(app: App, path: str, body: dict[str, object]) -> None:
    await load(app, "sql")
    await app.ask(path, model="sql", **body)
    assert adapter_of(app) == "sql"


async def test_errors_are_vllms(app: App) -> None:
    await load(app, "sql")
    status, text = await load(app, "sql")
    assert status == 400
    assert "The lora adapter 'sql' has already been loaded." in text
    assert await load(app, "sql", load_inplace=True) == (
        200,
        "Success: LoRA adapter 'sql' added successfully.",
    )
    assert "is a name of the served model" in (await load(app, "fake"))[1]
    status, answer = await app.post("/v1/unload_lora_adapter", lora_name="gone")
    assert status == 404
    assert answer["error"]["message"] == "The lora adapter 'gone' cannot be found."
    for body in ({"lora_name": "a"}, {"lora_name": "", "lora_path": "b"}, {"lora_path": "b"}):
        assert (await app.post("/v1/load_lora_adapter", **body))[0] == 400
    assert (await app.post("/v1/unload_lora_adapter"))[0] == 400


async def test_names_that_no_adapter_can_have_are_refused(app: App) -> None:
    for name in ("a\nb", "../a", "a/../../b", "/a", "fake:a", " ", "x" * 500, "a\u202eb"):
        status, answer = await app.post("/v1/load_lora_adapter", lora_name=name, lora_path="/adapters/a")
        assert (status, answer["error"]["param"]) == (400, "lora_name"), name
        assert "\n" not in answer["error"]["message"] and len(answer["error"]["message"]) < 400
    assert (await load(app, "org/sql-v1.2"))[0] == 200


async def test_of_two_loads_at_the_same_moment_one_succeeds(app: App) -> None:
    answers = await asyncio.gather(*(load(app, "sql") for _ in range(4)))
    assert sorted(status for status, _ in answers) == [200, 400, 400, 400]
    cards = [card["id"] for card in (await app.http.get("/v1/models")).json()["data"]]
    assert cards == ["fake", "sql"]


async def test_an_adapter_that_cannot_be_read_is_refused(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, directory: Path) -> Adapter:
        raise CheckpointError("It can't be read.")

    monkeypatch.setattr(app.runner, "read_adapter", fail)
    status, answer = await app.post("/v1/load_lora_adapter", lora_name="a", lora_path="/gone")
    assert (status, answer["error"]["param"]) == (400, "lora_path")
    assert (await app.post("/v1/completions", model="a", prompt="a"))[0] == 404


async def test_a_health_check_waits_for_the_first_adapters(
    app: App, fake_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (AdapterPath(name="sql", path=Path("/adapters/sql")),)
    config = ServerConfig(
        port=0, served_model_names=("fake",), takes_adapters=True, lora_modules=given, log_stats=False
    )
    service = GenerationService(app.service.engine, config, max_num_seqs=8)
    read, seen = app.runner.read_adapter, []

    def note(name: str, directory: Path) -> Adapter:
        seen.append(service.is_ready)
        return read(name, directory)

    monkeypatch.setattr(app.runner, "read_adapter", note)
    tokenizer: Future[Tokenizer] = Future()
    tokenizer.set_result(app.tokenizer)
    started = asyncio.create_task(asyncio.sleep(0))
    loading, ready = Loading(service.engine, started, tokenizer, fake_model), asyncio.Event()
    watching = asyncio.create_task(_load_and_watch(service, loading, ready.set))
    await asyncio.wait_for(ready.wait(), 60)
    assert (seen, service.is_ready, "sql" in service.model.adapters) == ([False], True, True)
    watching.cancel()
    await asyncio.wait([watching])


async def test_a_request_that_runs_keeps_its_adapter(fake_model: Path) -> None:
    async with app_in_process(fake_model, takes_adapters=True) as app:
        app.will_say("yes " * 40)
        begun, loop = asyncio.Event(), asyncio.get_running_loop()

        def note(batch: Batch) -> None:
            loop.call_soon_threadsafe(begun.set)

        app.runner.before = note
        await load(app, "sql")
        running = asyncio.create_task(app.ask("/v1/completions", model="sql", prompt="a", max_tokens=100))
        await asyncio.wait_for(begun.wait(), 60)
        await app.http.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})
        assert (await running)["choices"][0]["text"].startswith("yes yes")
        assert adapter_of(app) == "sql"


async def test_prompts_are_cached_per_adapter(app: App) -> None:
    await load(app, "one")
    await load(app, "two")

    async def cached(model: str) -> int:
        usage = (await app.ask("/v1/completions", model=model, prompt="abc" * 20))["usage"]
        return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

    assert [await cached(model) for model in ("fake", "one", "two")] == [0, 0, 0]
    assert all([await cached(model) > 0 for model in ("fake", "one", "two")])
    await load(app, "one", load_inplace=True)
    assert await cached("one") == 0


async def test_without_the_flag_there_are_no_such_routes(fake_model: Path) -> None:
    async with app_in_process(fake_model) as app:
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            status, answer = await app.post(path, lora_name="a", lora_path="b")
            assert status == 404
            assert "--enable-lora" in answer["error"]["message"]
