"""The selection of the requests that run next."""

from __future__ import annotations

from engine.pooling.batcher import Batcher
from engine.pooling.types import PoolingRequest


def request(name: str, length: int, priority: int = 0) -> PoolingRequest:
    return PoolingRequest(request_id=name, token_ids=[0] * length, priority=priority, arrival_time=0.0)


def batches(batcher: Batcher) -> list[list[str]]:
    found = []
    while batch := batcher.next_batch():
        found.append([one.request_id for one in batch])
    return found


def filled(*requests: PoolingRequest, max_tokens: int = 10, max_requests: int = 8) -> Batcher:
    batcher = Batcher(max_tokens=max_tokens, max_requests=max_requests)
    for one in requests:
        batcher.add(one)
    return batcher


def test_an_empty_batcher_gives_an_empty_batch() -> None:
    assert filled().next_batch() == []


def test_batches_keep_to_the_budget_and_are_sorted_by_length() -> None:
    batcher = filled(request("a", 4), request("b", 2), request("c", 4), request("d", 1))
    assert len(batcher) == 4
    assert batches(batcher) == [["b", "a", "c"], ["d"]]
    assert len(batcher) == 0


def test_batches_keep_to_the_number_of_requests() -> None:
    assert batches(filled(*(request(name, 1) for name in "abc"), max_requests=2)) == [["a", "b"], ["c"]]


def test_a_request_longer_than_the_budget_runs_alone() -> None:
    assert batches(filled(request("a", 1), request("b", 99), request("c", 1))) == [["a"], ["b"], ["c"]]


def test_requests_run_by_priority_and_then_by_arrival() -> None:
    batcher = filled(request("a", 9), request("b", 9, 1), request("c", 9, -1), request("d", 9))
    assert batches(batcher) == [["c"], ["a"], ["d"], ["b"]]


def test_aborted_requests_do_not_run() -> None:
    batcher = filled(request("a", 9), request("b", 9))
    assert batcher.abort("a")
    assert not batcher.abort("a")
    assert len(batcher) == 1
    batcher.add(request("a", 3))  # the id is free again
    assert batches(batcher) == [["b"], ["a"]]
