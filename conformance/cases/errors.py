"""Invalid requests are refused with the right status, in OpenAI's envelope, and with the field's name."""

from __future__ import annotations

from typing import Any

from conformance.case import Group, Need
from conformance.checks import check, equal
from conformance.client import CHAT, COMPLETIONS, OMIT, Api

group = Group("errors", Need.GENERATE)

# label → the invalid fields, and the expected `param`
_IN_COMPLETION: dict[str, tuple[dict[str, Any], str]] = {
    "no-prompt": ({"prompt": OMIT}, "prompt"),
    "prompt-is-null": ({"prompt": None}, "prompt"),
    "prompt-is-a-number": ({"prompt": 5}, "prompt"),
    "prompt-is-an-object": ({"prompt": {}}, "prompt"),
    "prompt-is-an-empty-list": ({"prompt": []}, "prompt"),
    "prompt-is-a-mixed-list": ({"prompt": ["a", 1]}, "prompt"),
    "prompt-token-is-negative": ({"prompt": [-1]}, "prompt"),
    "prompt-token-is-outside-the-vocabulary": ({"prompt": [2**31]}, "prompt"),
    "max-tokens-negative": ({"max_tokens": -2}, "max_tokens"),
    "max-tokens-is-text": ({"max_tokens": "ten"}, "max_tokens"),
    "max-tokens-is-a-fraction": ({"max_tokens": 1.5}, "max_tokens"),
    "n-0": ({"n": 0}, "n"),
    "n-negative": ({"n": -1}, "n"),
    "n-huge": ({"n": 10**9}, "n"),
    "temperature-negative": ({"temperature": -0.1}, "temperature"),
    "temperature-above-2": ({"temperature": 2.5}, "temperature"),
    "temperature-is-text": ({"temperature": "hot"}, "temperature"),
    "top-p-0": ({"top_p": 0}, "top_p"),
    "top-p-above-1": ({"top_p": 1.1}, "top_p"),
    "top-p-negative": ({"top_p": -0.5}, "top_p"),
    "top-k-below-minus-1": ({"top_k": -2}, "top_k"),
    "top-k-is-a-fraction": ({"top_k": 1.5}, "top_k"),
    "min-p-negative": ({"min_p": -0.1}, "min_p"),
    "min-p-above-1": ({"min_p": 1.1}, "min_p"),
    "presence-penalty-3": ({"presence_penalty": 3}, "presence_penalty"),
    "frequency-penalty-minus-3": ({"frequency_penalty": -3}, "frequency_penalty"),
    "repetition-penalty-0": ({"repetition_penalty": 0}, "repetition_penalty"),
    "repetition-penalty-negative": ({"repetition_penalty": -1.0}, "repetition_penalty"),
    "seed-is-text": ({"seed": "x"}, "seed"),
    "seed-is-huge": ({"seed": 2**100}, "seed"),
    "stop-is-empty": ({"stop": ""}, "stop"),
    "stream-is-text": ({"stream": "perhaps"}, "stream"),
    "echo-is-text": ({"echo": "perhaps"}, "echo"),
    "logit-bias-is-a-list": ({"logit_bias": [1]}, "logit_bias"),
    "logit-bias-of-a-word": ({"logit_bias": {"word": 1}}, "logit_bias"),
    "logit-bias-is-text": ({"logit_bias": {"1": "x"}}, "logit_bias"),
    "logit-bias-outside-the-vocabulary": ({"logit_bias": {str(2**31): 1}}, "logit_bias"),
    "allowed-tokens-empty": ({"allowed_token_ids": []}, "allowed_token_ids"),
    "allowed-tokens-outside-the-vocabulary": ({"allowed_token_ids": [2**31]}, "allowed_token_ids"),
    "bad-words-are-numbers": ({"bad_words": [5]}, "bad_words"),
    "priority-is-text": ({"priority": "high"}, "priority"),
    "suffix": ({"suffix": "the end"}, "suffix"),
    "best-of": ({"best_of": 3}, "best_of"),
    "truncate-prompt-tokens-negative": ({"truncate_prompt_tokens": -5}, "truncate_prompt_tokens"),
    "stream-options-of-a-whole-answer": ({"stream_options": {"include_usage": True}}, "stream_options"),
}
_IN_CHAT: dict[str, tuple[dict[str, Any], str]] = {
    "no-messages": ({"messages": OMIT}, "messages"),
    "messages-is-null": ({"messages": None}, "messages"),
    "messages-is-text": ({"messages": "Hi"}, "messages"),
    "messages-is-empty": ({"messages": []}, "messages"),
    "a-message-is-text": ({"messages": ["Hi"]}, "messages[0]"),
    "a-message-has-no-role": ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
    "a-message-has-a-wrong-role": ({"messages": [{"role": "wizard", "content": "Hi"}]}, "messages[0].role"),
    "a-users-message-has-no-content": ({"messages": [{"role": "user"}]}, "messages[0]"),
    "content-is-a-number": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    "the-second-message-is-wrong": (
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "user", "content": 5}]},
        "messages[1].content",
    ),
    "max-tokens-0": ({"max_tokens": 0}, "max_tokens"),
    "max-completion-tokens-0": ({"max_completion_tokens": 0}, "max_completion_tokens"),
    "temperature-above-2": ({"temperature": 2.5}, "temperature"),
    "top-p-0": ({"top_p": 0}, "top_p"),
    "n-0": ({"n": 0}, "n"),
    "logit-bias-of-a-word": ({"logit_bias": {"word": 1}}, "logit_bias"),
    "tools-is-text": ({"tools": "all"}, "tools"),
    "a-tool-has-no-function": ({"tools": [{"type": "function"}]}, "tools[0].function"),
    "tool-choice-without-tools": ({"tool_choice": "required"}, "tool_choice"),
    "tool-choice-is-nonsense": ({"tool_choice": "perhaps"}, "tool_choice"),
    "response-format-is-nonsense": ({"response_format": {"type": "perhaps"}}, "response_format.type"),
    "response-format-has-no-schema": (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
    ),
    "modalities": ({"modalities": ["audio"]}, "modalities"),
    "audio": ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
}


async def _error(api: Api, path: str, fields: dict[str, Any]) -> Any:
    return await api.refused(await api.post(path, _body(api, path, fields)))


def _body(api: Api, path: str, fields: dict[str, Any]) -> dict[str, Any]:
    """A valid body except for these fields."""
    whole = api.completion_body() if path == COMPLETIONS else api.chat_body()
    return {name: value for name, value in {**whole, **fields}.items() if value is not OMIT}


@group.each(_IN_COMPLETION)
async def a_completion_is_refused(api: Api, wrong: tuple[dict[str, Any], str]) -> None:
    await _error(api, COMPLETIONS, wrong[0])


@group.each(_IN_COMPLETION)
async def a_completions_error_names(api: Api, wrong: tuple[dict[str, Any], str]) -> None:
    error = await _error(api, COMPLETIONS, wrong[0])
    check(_names(error["param"], wrong[1]), f"param {error['param']!r}, expected {wrong[1]!r}")


_WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "unknown-field": {"temperatur": 1},
    "of-another-server": {"num_ctx": 4096, "cache_prompt": True},
    "metadata": {"metadata": {"trace": "1"}},
    "store": {"store": True},
    "service-tier": {"service_tier": "flex"},
    "verbosity": {"verbosity": "low"},
    "prediction": {"prediction": {"type": "content", "content": "Hi"}},
    "web-search": {"web_search_options": {}},
    "user": {"user": "someone"},
}


@group.each(_WITHOUT_EFFECT, Need.CHAT)
async def fields_without_effect_are_accepted(api: Api, fields: dict[str, Any]) -> None:
    (await api.post(CHAT, _body(api, CHAT, fields))).ok()


@group.each({"completion": COMPLETIONS, "chat": CHAT}, Need.CHAT)
async def an_unknown_field_is_named_in_a_warning(api: Api, path: str) -> None:
    answer = await api.post(path, _body(api, path, {"temperatur": 1}))
    warning = answer.headers.get("warning", "")
    check("temperatur" in warning, f"header Warning: {warning!r}")


@group.each(_IN_CHAT, Need.CHAT)
async def a_chat_is_refused(api: Api, wrong: tuple[dict[str, Any], str]) -> None:
    await _error(api, CHAT, wrong[0])


@group.each(_IN_CHAT, Need.CHAT)
async def a_chats_error_names(api: Api, wrong: tuple[dict[str, Any], str]) -> None:
    error = await _error(api, CHAT, wrong[0])
    check(_names(error["param"], wrong[1]), f"param {error['param']!r}, expected {wrong[1]!r}")


def _names(param: Any, expected: str) -> bool:
    """Whether `param` is the field or a part of it."""
    return param == expected or str(param).startswith((f"{expected}.", f"{expected}["))


# Models and routes


@group.each({"completion": COMPLETIONS, "chat": CHAT}, Need.CHAT)
async def an_unknown_model_is_404(api: Api, path: str) -> None:
    body = api.completion_body() if path == COMPLETIONS else api.chat_body()
    error = await api.refused(await api.post(path, {**body, "model": "no-such-model"}), 404)
    equal(error["param"], "model", "param")
    check("no-such-model" in error["message"], f"the message lacks the model: {error['message']}")


@group.each({"root": "/v1/nothing", "deeper": "/v1/chat/nothing", "outside": "/nothing"})
async def an_unknown_path_is_404(api: Api, path: str) -> None:
    await api.refused(await api.get(path), 404)


@group.each({"completions": COMPLETIONS, "chat": CHAT, "tokenize": "/tokenize"})
async def a_wrong_method_is_405(api: Api, path: str) -> None:
    await api.refused(await api.get(path), 405)


@group.case()
async def models_cannot_be_posted(api: Api) -> None:
    await api.refused(await api.post("/v1/models", {}), 405)


# Bodies


_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "broken": b'{"prompt": "a"',
    "a-word": b"hello",
    "a-list": b"[]",
    "text": b'"hello"',
    "null": b"null",
    "a-number": b"5",
    "broken-utf-8": b'{"prompt": "\xff\xfe"}',
    "two-objects": b"{}{}",
    "nested-deeply": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a-huge-number": b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    "not-a-number": b'{"prompt": "a", "temperature": NaN}',
    "infinity": b'{"prompt": "a", "temperature": Infinity}',
    "minus-infinity": b'{"prompt": "a", "presence_penalty": -Infinity}',
    "a-number-too-large-for-a-float": b'{"prompt": "a", "temperature": 1e999}',
}


@group.each(_BODIES)
async def a_wrong_body_is_400(api: Api, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    await api.refused(await api.post(COMPLETIONS, content=body, headers=headers))


@group.case()
async def a_lone_surrogate_does_no_harm(api: Api) -> None:
    headers = {"content-type": "application/json"}
    body = b'{"prompt": "a\\ud800b", "max_tokens": 1}'
    answer = await api.post(COMPLETIONS, content=body, headers=headers)
    check(answer.status in (200, 400), f"status {answer.status}: {answer.text[:200]}")


@group.each({"text": "text/plain", "form": "application/x-www-form-urlencoded", "xml": "application/xml"})
async def another_media_type_is_415(api: Api, kind: str) -> None:
    body = b'{"prompt": "a", "max_tokens": 1}'
    await api.refused(await api.post(COMPLETIONS, content=body, headers={"content-type": kind}), 415)


@group.case()
async def ten_megabytes_are_refused_in_time(api: Api) -> None:
    body = api.completion_body("word " * 2_000_000)
    await api.refused(await api.post(COMPLETIONS, body))
    equal((await api.get("/health")).status, 200, "health afterwards")


@group.case()
async def a_charset_may_be_named(api: Api) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    answer = await api.post(COMPLETIONS, content=b'{"prompt": "a", "max_tokens": 1}', headers=headers)
    equal(answer.status, 200, "status")


@group.case()
async def a_failed_request_does_not_disturb_others(api: Api) -> None:
    before = (await api.complete())["choices"][0]["text"]
    for fields, _ in _IN_COMPLETION.values():
        await api.post(COMPLETIONS, _body(api, COMPLETIONS, fields))
    equal((await api.complete())["choices"][0]["text"], before, "text")
