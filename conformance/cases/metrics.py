"""/metrics: vLLM's names, and values that match the requests sent."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

from conformance.case import Group, Need
from conformance.checks import Mismatch, check, equal
from conformance.client import COMPLETIONS, Api

group = Group("metrics", Need.GENERATE)

_NAMES = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "prompt_tokens_total",
    "generation_tokens_total",
    "num_preemptions_total",
    "request_success_total",
    "time_to_first_token_seconds_count",
    "inter_token_latency_seconds_count",
    "e2e_request_latency_seconds_count",
    "request_queue_time_seconds_count",
    "request_prefill_time_seconds_count",
    "request_decode_time_seconds_count",
    "request_prompt_tokens_count",
    "request_generation_tokens_count",
    "cache_config_info",
)
_SETTLE_S = 5.0  # counters may be updated shortly after the response
_SAMPLE = re.compile(r"^vllm:(\w+)\{(.*)\} (\S+)$", re.M)


async def _read(api: Api) -> dict[str, float]:
    """Sums over labels, by name; with a finish reason also separately, as name/reason."""
    answer = await api.get("/metrics")
    equal(answer.status, 200, "status")
    values: dict[str, float] = {}
    for name, labels, value in _SAMPLE.findall(answer.text):
        if 'le="' in labels:
            continue
        reason = re.search(r'finished_reason="(\w+)"', labels)
        for key in [name, *([f"{name}/{reason[1]}"] if reason else [])]:
            values[key] = values.get(key, 0.0) + float(value)
    return values


async def _grown(api: Api, send: Callable[[], Awaitable[Any]], expected: dict[str, float]) -> None:
    """Check that the counters grow by the expected amounts during `send`."""
    before = await _read(api)
    await send()
    deadline = asyncio.get_running_loop().time() + _SETTLE_S
    while True:
        after = await _read(api)
        grown = {name: after.get(name, 0) - before.get(name, 0) for name in expected}
        if grown == expected:
            return
        if asyncio.get_running_loop().time() > deadline:
            raise Mismatch(f"grew by {grown}, expected {expected}")
        await asyncio.sleep(0.05)


@group.each({name: name for name in _NAMES})
async def has_the_metric(api: Api, name: str) -> None:
    await api.complete(max_tokens=2)
    for _ in range(100):
        if name in await _read(api):
            return
        await asyncio.sleep(_SETTLE_S / 100)
    check(False, f"vllm:{name} is missing")


@group.case()
async def is_text_for_prometheus(api: Api) -> None:
    answer = await api.get("/metrics")
    check(answer.headers["content-type"].startswith("text/plain"), answer.headers["content-type"])
    check("# TYPE vllm:num_requests_running gauge" in answer.text, "no TYPE of num_requests_running")


@group.case()
async def names_the_model(api: Api) -> None:
    answer = await api.get("/metrics")
    check(f'model_name="{api.facts.model}"' in answer.text, "no sample is labelled with the model")


@group.case(alone=True)
async def tokens_are_counted(api: Api) -> None:
    expected = {"prompt_tokens_total": float(len(api.facts.prompt_ids)), "generation_tokens_total": 7.0}
    await _grown(api, lambda: api.complete(max_tokens=7), expected)


@group.case(alone=True)
async def tokens_of_streams_are_counted(api: Api) -> None:
    expected = {"prompt_tokens_total": float(len(api.facts.prompt_ids)), "generation_tokens_total": 7.0}
    await _grown(api, lambda: api.stream_completion(max_tokens=7), expected)


@group.case(alone=True)
async def lengths_of_requests_are_counted(api: Api) -> None:
    num_prompt = float(len(api.facts.prompt_ids))
    expected = {
        "request_prompt_tokens_count": 2.0,
        "request_prompt_tokens_sum": 2 * num_prompt,
        "request_generation_tokens_count": 2.0,
        "request_generation_tokens_sum": 10.0,
    }
    await _grown(api, lambda: api.complete([api.facts.prompt] * 2, max_tokens=5), expected)


@group.case(alone=True)
async def each_prompt_is_a_request(api: Api) -> None:
    expected = {"request_success_total/length": 3.0, "e2e_request_latency_seconds_count": 3.0}
    await _grown(api, lambda: api.complete([api.facts.prompt] * 3, max_tokens=2), expected)


@group.case(alone=True)
async def a_request_is_measured_once(api: Api) -> None:
    expected = {
        "time_to_first_token_seconds_count": 1.0,
        "inter_token_latency_seconds_count": 9.0,
        "e2e_request_latency_seconds_count": 1.0,
        "request_queue_time_seconds_count": 1.0,
        "request_prefill_time_seconds_count": 1.0,
        "request_decode_time_seconds_count": 1.0,
    }
    await _grown(api, lambda: api.complete(max_tokens=10), expected)


@group.case(alone=True)
async def finish_reasons_are_distinguished(api: Api) -> None:
    stop = api.facts.token_ids[2] if api.facts.token_ids else 0

    async def send() -> None:
        await api.complete(max_tokens=10, stop_token_ids=[stop])
        await api.complete(max_tokens=2)

    await _grown(api, send, {"request_success_total/stop": 1.0, "request_success_total/length": 1.0})


@group.case(alone=True)
async def the_prefix_cache_is_counted(api: Api) -> None:
    prompt = api.facts.prompt_ids * 20
    await api.complete(prompt, max_tokens=1)
    before = await _read(api)
    await api.complete(prompt, max_tokens=1)
    after = await _read(api)
    queries = after["prefix_cache_queries_total"] - before["prefix_cache_queries_total"]
    hits = after["prefix_cache_hits_total"] - before["prefix_cache_hits_total"]
    check(0 < hits <= queries == len(prompt), f"{queries} queries, {hits} hits, {len(prompt)} tokens")


@group.case(alone=True)
async def a_refused_request_is_not_counted(api: Api) -> None:
    body = api.completion_body(temperature=-1)
    await _grown(api, lambda: api.post(COMPLETIONS, body), {"request_success_total": 0.0})


@group.case(alone=True)
async def gauges_return_to_zero(api: Api) -> None:
    await asyncio.gather(*(api.complete(max_tokens=4) for _ in range(20)))
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    for _ in range(100):
        values = await _read(api)
        if not any(values[name] for name in names):
            return
        await asyncio.sleep(_SETTLE_S / 100)
    check(False, f"not zero: { {name: values[name] for name in names} }")
