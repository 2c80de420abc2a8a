"""Long JSON bodies are parsed and changed in a process of their own, with the same results."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psutil
import pytest

from api.gateway.json_worker import outline
from api.gateway.json_worker_pool import LONG_BYTES, JsonWorkerPool
from api.http.named_model import InvalidBody, UnclearModel, read_object

LONG = 'é \\ " [,] ' * 400_000


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": LONG, **fields}).encode()


async def test_a_long_body_is_outlined() -> None:
    raw = body(keep_alive="5m", stream=True, ids=list(range(100_000)))
    assert len(raw) > LONG_BYTES
    read = await JsonWorkerPool().read(raw)
    assert read.name == "m"
    assert read.fields.keys() == {"model", "prompt", "keep_alive", "stream", "ids"}
    assert read.fields["keep_alive"] == "5m" and read.fields["stream"] is True
    assert LONG.startswith(read.fields["prompt"]) and read.fields["ids"][:3] == [0, 1, 2]
    assert len(json.dumps(read.fields)) < 100_000


async def test_a_long_body_is_changed() -> None:
    raw = body(keep_alive="5m", temperature=1)
    made = await JsonWorkerPool().change(raw, frozenset({"keep_alive"}), {"model": "other", "seed": 5})
    assert read_object(made) == {"model": "other", "prompt": LONG, "temperature": 1, "seed": 5}


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        (b'{"model": "m", "prompt": "' + b"x" * LONG_BYTES, InvalidBody, "not valid JSON"),
        (b"[" + b"1," * 500_000 + b"1]", InvalidBody, "must be a JSON object"),
        (b'{"model": "a", "model": "b", "x": "' + b"x" * LONG_BYTES + b'"}', UnclearModel, "more than once"),
    ],
)
async def test_errors_are_the_same_as_for_short_bodies(
    raw: bytes, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await JsonWorkerPool().read(raw)


async def test_a_disconnect_leaves_no_process() -> None:
    before = set(psutil.Process().children())  # of other tests
    reading = asyncio.create_task(JsonWorkerPool().read(body()))
    async with asyncio.timeout(30):
        while not set(psutil.Process().children()) - before:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.001)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not set(psutil.Process().children()) - before


def _wide(depth: int) -> Any:
    return {f"{'name' * 100}{n}": _wide(depth - 1) if depth else 7 for n in range(12)}


def _deep() -> Any:
    deep: Any = "x" * 100_000
    for _ in range(100):
        deep = {"a": [deep] * 3}
    return deep


@pytest.mark.parametrize(
    "fields",
    [
        {"a": _deep(), "b": [["x" * 10_000] * 10] * 10},
        {"a": _wide(4)},
        {str(n): "\U0001f600" * 4096 for n in range(4096)},
        {str(n): [[[1] * 100] * 2] * 2 for n in range(4096)},
        {"x" * 30_000_000: 1, "prompt": "y"},
    ],
    ids=["deep", "wide", "many texts", "many lists", "a long name"],
)
def test_an_outline_is_small_for_any_body(fields: dict[str, Any]) -> None:
    assert len(json.dumps(outline(fields), ensure_ascii=False).encode()) < 2**20


async def test_too_many_fields_are_refused() -> None:
    raw = json.dumps({"model": "m"} | dict.fromkeys(map(str, range(300_000)), 0)).encode()
    assert len(raw) > LONG_BYTES
    with pytest.raises(InvalidBody, match="300001 fields; at most 4096"):
        await JsonWorkerPool().read(raw)
