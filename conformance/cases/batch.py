"""POST /v1/chat/completions/batch: several conversations in one request."""

from __future__ import annotations

from typing import Any

from conformance.case import Group, Need
from conformance.checks import equal, has_keys
from conformance.client import Api

group = Group("batch", Need.GENERATE, Need.CHAT)

_PATH = "/v1/chat/completions/batch"
_CONVERSATIONS = [[{"role": "user", "content": text}] for text in ("Hello", "Count to three.", "Hello")]


@group.case()
async def each_conversation_has_a_choice(api: Api) -> None:
    answer = (await api.post(_PATH, api.chat_body(_CONVERSATIONS))).ok()
    equal(answer["object"], "chat.completion", "object")
    equal([choice["index"] for choice in answer["choices"]], [0, 1, 2], "indices")
    for choice in answer["choices"]:
        has_keys(choice, ["index", "message", "finish_reason", "logprobs"], "a choice")


@group.case()
async def each_answer_equals_a_single_request(api: Api) -> None:
    batch = (await api.post(_PATH, api.chat_body(_CONVERSATIONS))).ok()
    alone = [await api.chat(messages) for messages in _CONVERSATIONS]
    for choice, answer in zip(batch["choices"], alone, strict=True):
        equal(choice["message"]["content"], answer["choices"][0]["message"]["content"], "content")
    for name in ("prompt_tokens", "completion_tokens"):
        equal(batch["usage"][name], sum(answer["usage"][name] for answer in alone), name)


@group.each(
    {
        "n": {"n": 2},
        "beams": {"use_beam_search": True},
        "one-conversation": {"messages": _CONVERSATIONS[0]},
        "no-conversation": {"messages": []},
        "an-empty-conversation": {"messages": [[]]},
    }
)
async def refuses(api: Api, wrong: dict[str, Any]) -> None:
    await api.refused(await api.post(_PATH, {**api.chat_body(_CONVERSATIONS), **wrong}))
