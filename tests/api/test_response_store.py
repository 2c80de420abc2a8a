"""Stored responses: whose they are, how many, how large, how long."""

from __future__ import annotations

from typing import Any

import pytest

from api.protocols.responses import store
from api.protocols.responses.store import ResponseStore, UnknownResponse


def response(name: str, text: str = "") -> dict[str, Any]:
    return {"id": name, "output": [{"id": f"msg_{name}", "type": "message", "content": text}]}


def test_a_response_has_its_history_inputs_and_output() -> None:
    mine = ResponseStore().of("me")
    mine.put(response("a"), [{"id": "in"}], [])
    mine.put(response("b"), [{"id": "in2"}], mine.get("a").items)
    assert [item["id"] for item in mine.get("b").items] == ["in", "msg_a", "in2", "msg_b"]
    assert [item["id"] for item in mine.get("b").input_items] == ["in", "msg_a", "in2"]
    assert mine.item("msg_a") == response("a")["output"][0] and mine.item("none") is None


def test_owners_see_their_own_alone() -> None:
    responses = ResponseStore()
    responses.of("me").put(response("a"), [], [])
    for call in (responses.of("you").get, responses.of("you").delete):
        with pytest.raises(UnknownResponse):
            call("a")
    responses.of("me").delete("a")
    with pytest.raises(UnknownResponse):
        responses.of("me").get("a")


def test_the_number_is_bounded_and_others_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_STORED", 4)
    responses = ResponseStore()
    responses.of("you").put(response("yours"), [], [])
    for number in range(9):
        responses.of("me").put(response(f"mine{number}"), [], [])
    assert (len(responses.of("you")), len(responses.of("me"))) == (1, 3)
    assert responses.of("me").get("mine8")


def test_the_size_is_bounded_by_the_least_recently_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_STORED_BYTES", 700)
    mine = ResponseStore().of("me")
    for name in ("a", "b", "c"):
        mine.put(response(name, "x" * 60), [], [])
        mine.get("a")
    assert mine.get("a") and mine.get("c") and mine.num_bytes <= 700
    with pytest.raises(UnknownResponse):
        mine.get("b")


def test_unused_responses_expire() -> None:
    now = [0.0]
    responses = ResponseStore(clock=lambda: now[0])
    mine = responses.of("me")
    mine.put(response("a"), [], [])
    mine.put(response("b"), [], [])
    now[0] = store.MAX_AGE_S - 1
    mine.get("b")
    now[0] = store.MAX_AGE_S + 1
    with pytest.raises(UnknownResponse):
        mine.get("a")
    assert mine.get("b")
    responses.evict()
    assert len(mine) == 1
