"""Reads `GET /models/sse` in a thread, as clients of llama.cpp do."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.berth_process import BerthProcess

WAIT_S = 30.0


class ModelFeed:
    """The events so far, one at a time."""

    def __init__(self) -> None:
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()

    def read(self, response: httpx.Response) -> None:
        try:
            for line in response.iter_lines():
                if line:
                    name, _, data = line.partition(": ")
                    assert name == "data"
                    self._events.put(json.loads(data))
        except httpx.TransportError:
            return  # closed by the test

    def next(self, event: str | None = None, model: str | None = None) -> dict[str, Any]:
        """The next event, of this kind and model if given."""
        while True:
            found = self._events.get(timeout=WAIT_S)
            if event in (None, found["event"]) and model in (None, found["model"]):
                return found

    def statuses(self, model: str, until: str) -> list[str]:
        """The model's states up to this one."""
        seen: list[str] = []
        while until not in seen:
            seen.append(self.next("model_status", model)["data"]["status"])
        return seen


@contextmanager
def following(berth: BerthProcess, key: str | None = None) -> Iterator[ModelFeed]:
    """Subscribed before this returns."""
    headers = {"Accept": "text/event-stream"} | ({"Authorization": f"Bearer {key}"} if key else {})
    feed = ModelFeed()
    with (
        httpx.Client(base_url=berth.url, trust_env=False, timeout=WAIT_S, headers=headers) as client,
        client.stream("GET", "/models/sse") as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        reader = threading.Thread(target=feed.read, args=(response,), daemon=True)
        reader.start()
        yield feed
        response.close()
