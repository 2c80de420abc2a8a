"""Beam search: `use_beam_search`, with `n` beams."""

from __future__ import annotations

from typing import Any

from conformance.case import Group, Need
from conformance.checks import check, equal
from conformance.client import CHAT, COMPLETIONS, Api

group = Group("beams", Need.GENERATE)

_BEAMS: dict[str, Any] = {"use_beam_search": True, "max_tokens": 8}


def _total(choice: dict[str, Any]) -> float:
    logprobs: list[float] = choice["logprobs"]["token_logprobs"]
    return sum(logprobs)


@group.case()
async def one_beam_is_the_greedy_text(api: Api) -> None:
    greedy = await api.complete(max_tokens=8)
    beam = await api.complete(**_BEAMS, n=1)
    equal(beam["choices"][0]["text"], greedy["choices"][0]["text"], "text")


@group.each({"two": 2, "three": 3, "four": 4})
async def the_best_come_first(api: Api, n: int) -> None:
    choices = (await api.complete(**_BEAMS, n=n, logprobs=1))["choices"]
    equal([choice["index"] for choice in choices], list(range(n)), "indices")
    totals = [_total(choice) for choice in choices]
    check(totals == sorted(totals, reverse=True), f"log-probabilities {totals}")
    check(len({choice["text"] for choice in choices}) > 1, "all beams are the same")


@group.case()
async def of_a_single_token_the_best_is_the_most_likely(api: Api) -> None:
    greedy = await api.complete(max_tokens=1)
    beams = await api.complete(**{**_BEAMS, "max_tokens": 1}, n=3)
    equal(beams["choices"][0]["text"], greedy["choices"][0]["text"], "the best token")


@group.case()
async def usage_counts_all_of_them(api: Api) -> None:
    usage = (await api.complete(**_BEAMS, n=2))["usage"]
    equal(usage["completion_tokens"], 16, "completion_tokens")
    equal(usage["total_tokens"], usage["prompt_tokens"] + 16, "total_tokens")


@group.case(Need.CHAT)
async def a_chat_has_them_too(api: Api) -> None:
    choices = (await api.chat(**_BEAMS, n=2))["choices"]
    equal(len(choices), 2, "choices")
    check(all(choice["message"]["content"] for choice in choices), "a beam without content")


@group.each({"completion": COMPLETIONS, "chat": CHAT}, Need.CHAT)
async def they_are_not_streamed(api: Api, path: str) -> None:
    body = api.completion_body(**_BEAMS) if path == COMPLETIONS else api.chat_body(**_BEAMS)
    await api.refused(await api.post(path, {**body, "stream": True}))
