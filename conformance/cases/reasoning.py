"""Reasoning: text between <think> and </think> is separated from the content."""

from __future__ import annotations

from typing import Any

from conformance.case import Group, Need
from conformance.checks import NotApplicable, check, equal
from conformance.client import CHAT, Api

group = Group("reasoning", Need.GENERATE, Need.CHAT, Need.REASONING)

_MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}]


async def _prompt_tokens(api: Api, **fields: Any) -> int:
    usage = (await api.chat(_MESSAGES, max_tokens=1, **fields))["usage"]
    number: int = usage["prompt_tokens"]
    return number


@group.case()
async def effort_none_disables_reasoning(api: Api) -> None:
    off = await _prompt_tokens(api, chat_template_kwargs={"enable_thinking": False})
    equal(await _prompt_tokens(api, reasoning_effort="none"), off, "prompt_tokens")


@group.each({effort: effort for effort in ("low", "medium", "high")})
async def an_effort_enables_reasoning(api: Api, effort: str) -> None:
    on = await _prompt_tokens(api, chat_template_kwargs={"enable_thinking": True})
    equal(await _prompt_tokens(api, reasoning_effort=effort), on, "prompt_tokens")


@group.case()
async def reasoning_is_not_in_the_content(api: Api) -> None:
    message = (await api.chat(_MESSAGES, max_tokens=64, reasoning_effort="high"))["choices"][0]["message"]
    check("<think>" not in (message["content"] or ""), f"content {message['content']!r}")


@group.case()
async def a_stream_says_the_same(api: Api) -> None:
    fields: dict[str, Any] = {"max_tokens": 64, "reasoning_effort": "high"}
    stream = await api.stream_chat(_MESSAGES, **fields)
    message = (await api.chat(_MESSAGES, **fields))["choices"][0]["message"]
    reasoning = "".join(choice["delta"].get("reasoning") or "" for choice in stream.of(0))
    equal(reasoning, message.get("reasoning") or "", "reasoning")
    equal(stream.text(), message["content"] or "", "content")


@group.case()
async def it_may_be_left_out(api: Api) -> None:
    fields: dict[str, Any] = {"max_tokens": 64, "reasoning_effort": "high"}
    message = (await api.chat(_MESSAGES, **fields, include_reasoning=False))["choices"][0]["message"]
    equal(message.get("reasoning"), None, "reasoning")
    stream = await api.stream_chat(_MESSAGES, **fields, include_reasoning=False)
    check(not any(choice["delta"].get("reasoning") for choice in stream.of(0)), "reasoning in the stream")


@group.case()
async def it_may_be_sent_back(api: Api) -> None:
    messages = [*_MESSAGES, {"role": "assistant", "content": "4", "reasoning": "2 + 2 = 4"}, *_MESSAGES]
    equal((await api.chat(messages, max_tokens=2))["usage"]["completion_tokens"], 2, "completion_tokens")


@group.each({"0": 0, "5": 5})
async def a_budget_ends_it(api: Api, budget: int) -> None:
    fields: dict[str, Any] = {"max_tokens": 80, "reasoning_effort": "high", "thinking_token_budget": budget}
    message = (await api.chat(_MESSAGES, **fields))["choices"][0]["message"]
    reasoning = message.get("reasoning") or ""
    if not reasoning:
        raise NotApplicable("the model does not reason")
    tokens = await api.tokens_of(reasoning)
    check(len(tokens) <= budget + 8, f"{len(tokens)} tokens of reasoning with a budget of {budget}")
    check(message["content"], "no content after the budget was used up")


@group.each({"text": "many", "below-minus-1": -7})
async def refuses_the_budget(api: Api, budget: Any) -> None:
    await api.refused(await api.post(CHAT, api.chat_body(_MESSAGES, thinking_token_budget=budget)))
