"""POST /v1/chat/completions without streaming."""

from __future__ import annotations

import time
from typing import Any

from conformance.case import Group, Need
from conformance.checks import NotApplicable, check, equal, has_keys
from conformance.client import CHAT, OMIT, Api

group = Group("chat", Need.GENERATE, Need.CHAT)

_USER = {"role": "user", "content": "Tell me about the sea."}

NEUTRAL: dict[str, Any] = {
    "add_generation_prompt": True,
    "allowed_token_ids": None,
    "audio": None,
    "bad_words": [],
    "cache_salt": None,
    "chat_template": None,
    "chat_template_kwargs": None,
    "continue_final_message": False,
    "documents": None,
    "echo": False,
    "frequency_penalty": 0,
    "function_call": None,
    "functions": None,
    "include_reasoning": True,
    "logit_bias": None,
    "logprobs": False,
    "metadata": {},
    "min_p": 0.0,
    "min_tokens": 0,
    "modalities": ["text"],
    "n": 1,
    "parallel_tool_calls": True,
    "prediction": None,
    "presence_penalty": 0.0,
    "priority": 0,
    "reasoning_effort": None,
    "repetition_penalty": 1.0,
    "response_format": {"type": "text"},
    "return_token_ids": False,
    "safety_identifier": "someone",
    "seed": 7,
    "service_tier": "auto",
    "stop": None,
    "stop_token_ids": [],
    "store": False,
    "stream": False,
    "stream_options": None,
    "structured_outputs": None,
    "tool_choice": None,
    "tools": None,
    "top_logprobs": 0,
    "user": "someone",
}


def content_of(answer: Any, index: int = 0) -> str:
    message = answer["choices"][index]["message"]
    return (message.get("reasoning") or "") + (message["content"] or "")


@group.case()
async def an_answer_has_its_fields(api: Api) -> None:
    answer = await api.chat()
    has_keys(answer, ["id", "object", "created", "model", "choices", "usage"], "the answer")
    has_keys(answer["choices"][0], ["index", "message", "logprobs", "finish_reason"], "a choice")
    has_keys(answer["choices"][0]["message"], ["role", "content"], "a message")


@group.case()
async def an_answer_is_a_chat_completion(api: Api) -> None:
    answer = await api.chat()
    equal(answer["object"], "chat.completion", "object")
    equal(answer["model"], api.facts.model, "model")
    equal(answer["choices"][0]["message"]["role"], "assistant", "role")
    check(str(answer["id"]).startswith("chatcmpl-"), f"id {answer['id']}")


@group.case()
async def created_is_now(api: Api) -> None:
    check(abs((await api.chat())["created"] - time.time()) < 300, "created is far from now")


@group.case()
async def usage_adds_up(api: Api) -> None:
    usage = (await api.chat())["usage"]
    equal(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"], "total_tokens")


@group.case()
async def the_same_twice(api: Api) -> None:
    equal(content_of(await api.chat([_USER])), content_of(await api.chat([_USER])), "content")


@group.each({name: {name: value} for name, value in NEUTRAL.items()})
async def neutral_values_change_nothing(api: Api, fields: dict[str, Any]) -> None:
    answer = await api.chat([_USER], **fields)
    equal(content_of(answer), content_of(await api.chat([_USER])), "content")


@group.each(
    {
        f"{name}-{number}": (name, number)
        for name in ("max_tokens", "max_completion_tokens")
        for number in (1, 9)
    }
)
async def is_limited_by(api: Api, limit: tuple[str, int]) -> None:
    name, number = limit
    answer = await api.chat(**{"max_tokens": OMIT, name: number})
    equal(answer["usage"]["completion_tokens"], number, "completion_tokens")
    equal(answer["choices"][0]["finish_reason"], "length", "finish_reason")


@group.case()
async def max_completion_tokens_takes_precedence(api: Api) -> None:
    answer = await api.chat(max_tokens=9, max_completion_tokens=4)
    equal(answer["usage"]["completion_tokens"], 4, "completion_tokens")


@group.each({str(number): number for number in (2, 4)})
async def n_choices(api: Api, number: int) -> None:
    answer = await api.chat(n=number, temperature=1.0, seed=5, max_tokens=5)
    equal([choice["index"] for choice in answer["choices"]], list(range(number)), "indices")
    equal(answer["usage"]["completion_tokens"], 5 * number, "completion_tokens")


@group.case()
async def a_request_id_of_the_clients(api: Api) -> None:
    answer = await api.chat(request_id="conformance-chat", max_tokens=1)
    equal(answer["id"], "chatcmpl-conformance-chat", "id")


@group.case()
async def token_ids_on_request(api: Api) -> None:
    answer = await api.chat(return_token_ids=True, max_tokens=5)
    equal(len(answer["prompt_token_ids"]), answer["usage"]["prompt_tokens"], "number of prompt_token_ids")
    equal(len(answer["choices"][0]["token_ids"]), 5, "number of token_ids")


@group.case()
async def the_prompt_is_what_tokenize_says(api: Api) -> None:
    body = {"model": api.facts.model, "messages": [_USER]}
    tokens = (await api.post("/tokenize", body)).ok()["tokens"]
    answer = await api.chat([_USER], return_token_ids=True, max_tokens=1)
    equal(answer["prompt_token_ids"], tokens, "prompt_token_ids")


@group.case()
async def a_chat_is_a_completion_of_its_prompt(api: Api) -> None:
    body = {"model": api.facts.model, "messages": [_USER]}
    tokens = (await api.post("/tokenize", body)).ok()["tokens"]
    chat = await api.chat([_USER], return_token_ids=True, skip_special_tokens=False)
    completion = await api.complete(tokens, return_token_ids=True, skip_special_tokens=False)
    equal(chat["choices"][0]["token_ids"], completion["choices"][0]["token_ids"], "token_ids")


# Messages


_CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "system": [{"role": "system", "content": "Be brief."}, _USER],
    "turns": [_USER, {"role": "assistant", "content": "It is wide."}, {"role": "user", "content": "Go on."}],
    "name": [{**_USER, "name": "Ada"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Tell me about the sea."}]}],
    "empty-content": [{"role": "user", "content": ""}],
    "unicode": [{"role": "user", "content": "Größe? 你好 🙂"}],
    "nulls-as-clients-send-them-back": [
        _USER,
        {
            "role": "assistant",
            "content": "It is wide.",
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "tool_calls": None,
        },
        {"role": "user", "content": "Go on."},
    ],
}


@group.each(_CONVERSATIONS)
async def takes_a_conversation_with(api: Api, messages: list[dict[str, Any]]) -> None:
    answer = await api.chat(messages, max_tokens=3)
    equal(answer["usage"]["completion_tokens"], 3, "completion_tokens")


@group.case()
async def parts_are_the_same_as_text(api: Api) -> None:
    parts = await api.chat([{"role": "user", "content": [{"type": "text", "text": _USER["content"]}]}])
    equal(content_of(parts), content_of(await api.chat([_USER])), "content")


@group.each({"unknown-role": "wizard", "number": 5})
async def refuses_the_role(api: Api, role: Any) -> None:
    await api.refused(await api.post(CHAT, api.chat_body([{"role": role, "content": "Hi"}])))


@group.each(
    {
        "an-image": {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        "audio": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        "an-unknown-part": {"type": "smell"},
    }
)
async def refuses_content_that_is_not_text(api: Api, part: dict[str, Any]) -> None:
    await api.refused(await api.post(CHAT, api.chat_body([{"role": "user", "content": [part]}])))


# Templates


@group.case()
async def a_message_may_be_continued(api: Api) -> None:
    messages = [_USER, {"role": "assistant", "content": "The sea is"}]
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    body = {"model": api.facts.model, "messages": messages, **fields}
    tokens = (await api.post("/tokenize", body)).ok()["tokens"]
    answer = await api.chat(messages, **fields)
    equal(answer["usage"]["prompt_tokens"], len(tokens), "prompt_tokens")


@group.case()
async def continuing_and_beginning_exclude_each_other(api: Api) -> None:
    messages = [_USER, {"role": "assistant", "content": "The sea is"}]
    body = api.chat_body(messages, continue_final_message=True, add_generation_prompt=True)
    await api.refused(await api.post(CHAT, body))


@group.case()
async def echo_repeats_the_last_message(api: Api) -> None:
    messages = [_USER, {"role": "assistant", "content": "The sea is"}]
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    answer = await api.chat(messages, echo=True, **fields)
    check(content_of(answer).startswith("The sea is"), f"content {content_of(answer)!r}")


@group.case()
async def template_variables_are_accepted(api: Api) -> None:
    answer = await api.chat([_USER], chat_template_kwargs={"some_variable": "x"}, max_tokens=2)
    equal(answer["usage"]["completion_tokens"], 2, "completion_tokens")


@group.case()
async def documents_are_accepted(api: Api) -> None:
    documents = [{"title": "Sea", "text": "The sea is salty."}]
    answer = await api.chat([_USER], documents=documents, max_tokens=2)
    equal(answer["usage"]["completion_tokens"], 2, "completion_tokens")


# Limits


@group.case()
async def without_a_limit_the_context_is_one(api: Api) -> None:
    if api.facts.max_model_len > 4096:
        raise NotApplicable("the context is long: this would take too much time")
    answer = await api.chat(max_tokens=OMIT, ignore_eos=False, stop=[" ", "e", "\n"])
    check(answer["choices"][0]["finish_reason"] in ("stop", "length"), "finish_reason")


@group.case()
async def a_conversation_longer_than_the_context_is_400(api: Api) -> None:
    messages = [{"role": "user", "content": "word " * api.facts.max_model_len * 2}]
    error = await api.refused(await api.post(CHAT, api.chat_body(messages)))
    check(str(api.facts.max_model_len) in error["message"], f"the limit is missing: {error['message']}")
    check(
        "maximum context length is" in error["message"], f"clients look for this wording: {error['message']}"
    )
    equal(error["code"], "context_length_exceeded", "code")


@group.each({name: name for name in ("max_tokens", "max_completion_tokens")})
async def a_limit_beyond_the_context_is_a_cap(api: Api, name: str) -> None:
    limit = {"max_tokens": OMIT, name: api.facts.max_model_len * 16}
    answer = await api.chat(**limit, ignore_eos=False, stop=[" ", "e", "\n"])
    check(answer["choices"][0]["finish_reason"] in ("stop", "length"), "finish_reason")
