"""Embeddings, scores and rankings of a pooling server."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

from conformance.case import Group, Need
from conformance.checks import NotApplicable, check, close, equal, has_keys
from conformance.client import Api

group = Group("pooling")

_TEXTS = ["The cat sat on the mat.", "A dog ran.", "Stocks fell sharply on Tuesday after the report."]


async def _embed(api: Api, given: Any, **fields: Any) -> Any:
    return (await api.post("/v1/embeddings", {"model": api.facts.model, "input": given, **fields})).ok()


async def _vector(api: Api, given: Any, **fields: Any) -> list[float]:
    vector: list[float] = (await _embed(api, given, **fields))["data"][0]["embedding"]
    return vector


def _same(one: list[float], other: list[float], what: str) -> None:
    equal(len(one), len(other), f"length of {what}")
    check(all(abs(a - b) < 1e-3 for a, b in zip(one, other, strict=True)), f"{what} differ")


@group.case(Need.EMBED)
async def embeddings_have_their_fields(api: Api) -> None:
    answer = await _embed(api, "Hi")
    has_keys(answer, ["object", "data", "model", "usage"], "the answer")
    equal(answer["object"], "list", "object")
    equal(answer["data"][0]["object"], "embedding", "object of an embedding")
    equal(answer["model"], api.facts.model, "model")


@group.case(Need.EMBED)
async def usage_adds_up(api: Api) -> None:
    usage = (await _embed(api, _TEXTS))["usage"]
    equal(usage["total_tokens"], usage["prompt_tokens"], "total_tokens")
    single = [(await _embed(api, text))["usage"]["prompt_tokens"] for text in _TEXTS]
    equal(usage["prompt_tokens"], sum(single), "prompt_tokens")


@group.case(Need.EMBED)
async def vectors_are_in_order(api: Api) -> None:
    answer = await _embed(api, _TEXTS)
    equal([item["index"] for item in answer["data"]], [0, 1, 2], "indices")
    for text, one in zip(_TEXTS, answer["data"], strict=True):
        _same(one["embedding"], await _vector(api, text), f"vectors of {text!r}")


@group.case(Need.EMBED)
async def many_are_in_order(api: Api) -> None:
    texts = [f"{text} {number}" for number in range(20) for text in _TEXTS]
    data = (await _embed(api, texts))["data"]
    equal([item["index"] for item in data], list(range(60)), "indices")
    _same(data[37]["embedding"], await _vector(api, texts[37]), "vectors")


@group.case(Need.EMBED)
async def the_same_twice(api: Api) -> None:
    _same(await _vector(api, _TEXTS[0]), await _vector(api, _TEXTS[0]), "vectors")


@group.case(Need.EMBED)
async def numbers_are_finite(api: Api) -> None:
    check(all(math.isfinite(number) for number in await _vector(api, _TEXTS[0])), "not finite")


@group.case(Need.EMBED)
async def different_texts_differ(api: Api) -> None:
    one, other = await _vector(api, _TEXTS[0]), await _vector(api, _TEXTS[2])
    check(max(abs(a - b) for a, b in zip(one, other, strict=True)) > 1e-3, "the vectors are the same")


@group.case(Need.EMBED)
async def base64_is_the_same(api: Api) -> None:
    raw = base64.b64decode((await _embed(api, _TEXTS[0], encoding_format="base64"))["data"][0]["embedding"])
    numbers = list(struct.unpack(f"<{len(raw) // 4}f", raw))
    _same(numbers, await _vector(api, _TEXTS[0]), "vectors")


@group.case(Need.EMBED)
async def floats_may_be_requested(api: Api) -> None:
    _same(await _vector(api, "Hi", encoding_format="float"), await _vector(api, "Hi"), "vectors")


@group.each({"one": False, "a-list": True}, Need.EMBED)
async def token_ids_are_the_same(api: Api, listed: bool) -> None:
    tokens = await api.tokens_of(_TEXTS[0], add_special_tokens=True)
    _same(await _vector(api, [tokens] if listed else tokens), await _vector(api, _TEXTS[0]), "vectors")


@group.each(
    {"user": {"user": "x"}, "priority": {"priority": 0}, "dimensions": {"dimensions": None}}, Need.EMBED
)
async def neutral_values_change_nothing(api: Api, fields: dict[str, Any]) -> None:
    _same(await _vector(api, "Hi", **fields), await _vector(api, "Hi"), "vectors")


@group.case(Need.EMBED)
async def truncation_is_possible(api: Api) -> None:
    answer = await _embed(api, "word " * 300, truncate_prompt_tokens=16)
    equal(answer["usage"]["prompt_tokens"], 16, "prompt_tokens")


@group.case(Need.EMBED)
async def fewer_dimensions_work_or_are_refused(api: Api) -> None:
    answer = await api.post("/v1/embeddings", {"model": api.facts.model, "input": "Hi", "dimensions": 8})
    if answer.status == 400:
        equal((await api.refused(answer))["param"], "dimensions", "param")
        return
    vector = answer.ok()["data"][0]["embedding"]
    equal(len(vector), 8, "length")
    close(math.hypot(*vector), 1.0, "norm")


_WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no-input": ({}, "input"),
    "null": ({"input": None}, "input"),
    "a-number": ({"input": 5}, "input"),
    "an-empty-list": ({"input": []}, "input"),
    "a-mixed-list": ({"input": ["a", 1]}, "input"),
    "a-token-outside-the-vocabulary": ({"input": [2**31]}, "input"),
    "an-unknown-encoding": ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
    "dimensions-0": ({"input": "a", "dimensions": 0}, "dimensions"),
    "too-long": ({"input": "word " * 100_000}, "input"),
}


_WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "unknown-field": {"inputs": "b"},
    "user": {"user": "someone"},
    "metadata": {"metadata": {"trace": "1"}},
}


@group.each(_WITHOUT_EFFECT, Need.EMBED)
async def accepts_fields_without_effect(api: Api, fields: dict[str, Any]) -> None:
    (await api.post("/v1/embeddings", {"model": api.facts.model, "input": "a", **fields})).ok()


@group.each(_WRONG, Need.EMBED)
async def refuses(api: Api, wrong: tuple[dict[str, Any], str]) -> None:
    await api.refused(await api.post("/v1/embeddings", {"model": api.facts.model, **wrong[0]}))


@group.each(_WRONG, Need.EMBED)
async def names_the_refused_field(api: Api, wrong: tuple[dict[str, Any], str]) -> None:
    error = await api.refused(await api.post("/v1/embeddings", {"model": api.facts.model, **wrong[0]}))
    check(str(error["param"]).startswith(wrong[1]), f"param {error['param']!r}, expected {wrong[1]!r}")


@group.case(Need.EMBED)
async def an_unknown_model_is_404(api: Api) -> None:
    await api.refused(await api.post("/v1/embeddings", {"model": "no-such-model", "input": "a"}), 404)


@group.case(Need.EMBED)
async def does_not_generate(api: Api) -> None:
    answer = await api.post("/v1/completions", {"model": api.facts.model, "prompt": "a"})
    check(answer.status in (400, 404, 501), f"status {answer.status}")


# Scores and rankings


async def _score(api: Api, one: Any, two: Any, path: str = "/v1/score") -> Any:
    return (await api.post(path, {"model": api.facts.model, "text_1": one, "text_2": two})).ok()


@group.each({"v1": "/v1/score", "plain": "/score"}, Need.SCORE)
async def a_score(api: Api, path: str) -> None:
    answer = await _score(api, _TEXTS[0], _TEXTS[1], path)
    has_keys(answer, ["data", "model", "usage"], "the answer")
    check(isinstance(answer["data"][0]["score"], float), f"score {answer['data'][0]['score']!r}")


@group.case(Need.SCORE)
async def one_to_many(api: Api) -> None:
    data = (await _score(api, _TEXTS[0], _TEXTS))["data"]
    equal([item["index"] for item in data], [0, 1, 2], "indices")
    for text, one in zip(_TEXTS, data, strict=True):
        close(one["score"], (await _score(api, _TEXTS[0], text))["data"][0]["score"], f"score of {text!r}")


@group.case(Need.SCORE)
async def many_to_many(api: Api) -> None:
    data = (await _score(api, _TEXTS, _TEXTS[::-1]))["data"]
    equal(len(data), 3, "number of scores")


@group.case(Need.SCORE)
async def lists_of_different_lengths_are_refused(api: Api) -> None:
    body = {"model": api.facts.model, "text_1": _TEXTS, "text_2": _TEXTS[:2]}
    await api.refused(await api.post("/v1/score", body))


async def _rerank(api: Api, path: str, **fields: Any) -> Any:
    body = {"model": api.facts.model, "query": "Where is the cat?", "documents": _TEXTS, **fields}
    return await api.post(path, body)


_RERANKS = {"plain": "/rerank", "v1": "/v1/rerank", "v2": "/v2/rerank"}


@group.each(_RERANKS, Need.SCORE)
async def a_ranking_is_sorted(api: Api, path: str) -> None:
    results = (await _rerank(api, path)).ok()["results"]
    scores = [result["relevance_score"] for result in results]
    equal(scores, sorted(scores, reverse=True), "scores")
    equal(sorted(result["index"] for result in results), [0, 1, 2], "indices")


@group.each(_RERANKS, Need.SCORE)
async def the_best_of_a_ranking(api: Api, path: str) -> None:
    whole = (await _rerank(api, path)).ok()["results"]
    best = (await _rerank(api, path, top_n=1)).ok()["results"]
    equal([result["index"] for result in best], [whole[0]["index"]], "indices")


@group.case(Need.SCORE)
async def a_ranking_is_its_scores(api: Api) -> None:
    results = (await _rerank(api, "/v1/rerank")).ok()["results"]
    scores = (await _score(api, "Where is the cat?", _TEXTS))["data"]
    for result in results:
        close(result["relevance_score"], scores[result["index"]]["score"], "score")


@group.each(
    {
        "no-query": {"query": None},
        "documents-are-numbers": {"documents": [1, 2]},
        "top-n-negative": {"top_n": -1},
        "no-documents": {"documents": None},
    },
    Need.SCORE,
)
async def a_ranking_refuses(api: Api, fields: dict[str, Any]) -> None:
    await api.refused(await _rerank(api, "/v1/rerank", **fields))


@group.case(Need.EMBED)
async def pooling_gives_the_data(api: Api) -> None:
    answer = await api.post("/pooling", {"model": api.facts.model, "input": "Hi"})
    if answer.status in (400, 404):
        raise NotApplicable(f"the model does not support /pooling: {answer.text[:100]}")
    has_keys(answer.ok()["data"][0], ["index", "object", "data"], "an entry")
