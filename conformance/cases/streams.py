"""Streams: their format, and the same content as without streaming."""

from __future__ import annotations

import asyncio
from typing import Any

from conformance.case import Group, Need
from conformance.checks import check, equal, has_keys
from conformance.client import CHAT, COMPLETIONS, WIDE, Api

group = Group("streams", Need.GENERATE)

_USAGE = {"stream_options": {"include_usage": True}}
_CONTINUOUS = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
_VARIANTS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "one-token": {"max_tokens": 1},
    "long": {"max_tokens": 80},
    "seeded": {**WIDE, "seed": 11, "max_tokens": 40},
    # Not WIDE: cases run concurrently, and rounding would decide between thousands of almost equal tokens.
    "n": {"n": 3, "temperature": 1.0, "seed": 11},
    "usage": _USAGE,
    "special-tokens": {"skip_special_tokens": False},
    "penalties": {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    "min-p": {"temperature": 1.0, "min_p": 0.1, "seed": 4},
    "stop": {"stop": ["e", "."], "max_tokens": 40},
    "until-the-end": {"ignore_eos": False, "max_tokens": 60},
    "logprobs": {"logprobs": True},
}
_WITHOUT_USAGE = {"stream_options"}


def _whole(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _WITHOUT_USAGE}


@group.each(_VARIANTS)
async def a_completion_says_the_same_as_whole(api: Api, fields: dict[str, Any]) -> None:
    if fields.get("logprobs"):
        fields = {"logprobs": 1}
    stream = await api.stream_completion(**fields)
    whole = await api.complete(**_whole(fields))
    for choice in whole["choices"]:
        equal(stream.text(choice["index"]), choice["text"], "text")
        equal(stream.end(choice["index"])["finish_reason"], choice["finish_reason"], "finish_reason")
        equal(stream.end(choice["index"]).get("stop_reason"), choice["stop_reason"], "stop_reason")


@group.each(_VARIANTS, Need.CHAT)
async def a_chat_says_the_same_as_whole(api: Api, fields: dict[str, Any]) -> None:
    stream = await api.stream_chat(**fields)
    whole = await api.chat(**_whole(fields))
    for choice in whole["choices"]:
        equal(stream.text(choice["index"]), choice["message"]["content"] or "", "content")
        equal(stream.end(choice["index"])["finish_reason"], choice["finish_reason"], "finish_reason")


@group.each({"echo": {"echo": True}, "echo-alone": {"echo": True, "max_tokens": 0}})
async def an_echo_says_the_same_as_whole(api: Api, fields: dict[str, Any]) -> None:
    stream = await api.stream_completion(**fields)
    equal(stream.text(), (await api.complete(**fields))["choices"][0]["text"], "text")


@group.case()
async def several_prompts_say_the_same_as_whole(api: Api) -> None:
    prompts = [f"{api.facts.prompt} {word}" for word in ("one", "two", "three")]
    stream = await api.stream_completion(prompts)
    for choice in (await api.complete(prompts))["choices"]:
        equal(stream.text(choice["index"]), choice["text"], "text")


@group.case()
async def completion_chunks_have_their_fields(api: Api) -> None:
    for chunk in (await api.stream_completion()).chunks:
        has_keys(chunk, ["id", "object", "created", "model", "choices"], "a chunk")
        equal(chunk["object"], "text_completion", "object")
        for choice in chunk["choices"]:
            has_keys(choice, ["index", "text", "logprobs", "finish_reason"], "a choice")


@group.case(Need.CHAT)
async def chat_chunks_have_their_fields(api: Api) -> None:
    for chunk in (await api.stream_chat()).chunks:
        has_keys(chunk, ["id", "object", "created", "model", "choices"], "a chunk")
        equal(chunk["object"], "chat.completion.chunk", "object")
        for choice in chunk["choices"]:
            has_keys(choice, ["index", "delta", "finish_reason"], "a choice")


@group.case(Need.CHAT)
async def the_role_comes_first_and_once(api: Api) -> None:
    stream = await api.stream_chat(n=2, **WIDE, seed=1)
    for index in (0, 1):
        roles = [choice["delta"].get("role") for choice in stream.of(index)]
        equal([role for role in roles if role], ["assistant"], "roles")
        equal(roles[0], "assistant", "role of the first chunk")
        equal(stream.of(index)[0]["delta"].get("content"), "", "content of the first chunk")


@group.each({"completion": False, "chat": True}, Need.CHAT)
async def every_choice_ends_once_and_last(api: Api, chat: bool) -> None:
    fields = {"n": 2, **WIDE, "seed": 1}
    stream = await (api.stream_chat(**fields) if chat else api.stream_completion(**fields))
    for index in (0, 1):
        equal(stream.of(index)[-1], stream.end(index), "the last chunk")


@group.each({"completion": False, "chat": True}, Need.CHAT)
async def one_id_one_model_one_time(api: Api, chat: bool) -> None:
    stream = await (api.stream_chat() if chat else api.stream_completion())
    for name in ("id", "model", "created"):
        equal(len({chunk[name] for chunk in stream.chunks}), 1, f"number of different values of {name}")


@group.each({"completion": False, "chat": True}, Need.CHAT)
async def usage_comes_last_without_choices(api: Api, chat: bool) -> None:
    stream = await (api.stream_chat(**_USAGE) if chat else api.stream_completion(**_USAGE))
    *chunks, last = stream.chunks
    equal(last["choices"], [], "choices of the usage chunk")
    equal(last["usage"]["completion_tokens"], 16, "completion_tokens")
    check(all(chunk.get("usage") is None for chunk in chunks), "usage before the end")


@group.each({"completion": False, "chat": True}, Need.CHAT)
async def usage_is_that_of_the_whole_answer(api: Api, chat: bool) -> None:
    stream = await (api.stream_chat(**_USAGE) if chat else api.stream_completion(**_USAGE))
    whole = await (api.chat() if chat else api.complete())
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        equal(stream.chunks[-1]["usage"][name], whole["usage"][name], name)


@group.each({"completion": False, "chat": True}, Need.CHAT)
async def no_usage_unless_requested(api: Api, chat: bool) -> None:
    stream = await (api.stream_chat() if chat else api.stream_completion())
    check(all(chunk.get("usage") is None for chunk in stream.chunks), "usage that was not requested")
    check(all(chunk["choices"] for chunk in stream.chunks), "a chunk without choices")


@group.each({"completion": False, "chat": True}, Need.CHAT)
async def continuous_usage_grows(api: Api, chat: bool) -> None:
    stream = await (api.stream_chat(**_CONTINUOUS) if chat else api.stream_completion(**_CONTINUOUS))
    counts = [chunk["usage"]["completion_tokens"] for chunk in stream.chunks]
    equal(counts, sorted(counts), "completion_tokens")
    equal(counts[-1], 16, "completion_tokens of the last chunk")


@group.each({"completion": False, "chat": True}, Need.CHAT)
async def tokens_are_sent_as_they_are_generated(api: Api, chat: bool) -> None:
    stream = await (api.stream_chat() if chat else api.stream_completion())
    check(len(stream.chunks) >= 4, f"16 tokens came in {len(stream.chunks)} chunks")


@group.case()
async def no_chunk_holds_half_a_character(api: Api) -> None:
    """Random bytes of multi-byte characters: the chunks must join to the whole text."""
    tokens = await api.tokens_of("你好🙂ßé€")
    fields = {"allowed_token_ids": sorted(set(tokens)), **WIDE, "seed": 3, "max_tokens": 60}
    stream = await api.stream_completion(**fields)
    equal(stream.text(), (await api.complete(**fields))["choices"][0]["text"], "text")


@group.case()
async def concurrent_streams_give_the_same_text(api: Api) -> None:
    prompts = [f"{api.facts.prompt} {word}" for word in ("red", "green", "blue", "old", "new", "far")]
    streams = await asyncio.gather(*(api.stream_completion(prompt) for prompt in prompts))
    for prompt, stream in zip(prompts, streams, strict=True):
        equal(stream.text(), (await api.complete(prompt))["choices"][0]["text"], f"text after {prompt!r}")


@group.case()
async def proxies_must_not_buffer(api: Api) -> None:
    headers = (await api.stream_completion(max_tokens=1)).headers
    equal(headers.get("x-accel-buffering"), "no", "X-Accel-Buffering")


@group.each({"completion": COMPLETIONS, "chat": CHAT}, Need.CHAT)
async def stream_options_need_a_stream(api: Api, path: str) -> None:
    body = api.completion_body(**_USAGE) if path == COMPLETIONS else api.chat_body(**_USAGE)
    await api.refused(await api.post(path, body))


@group.each({"completion": COMPLETIONS, "chat": CHAT}, Need.CHAT)
async def a_refused_stream_has_a_status(api: Api, path: str) -> None:
    body = api.completion_body() if path == COMPLETIONS else api.chat_body()
    answer = await api.post(path, {**body, "stream": True, "temperature": -1})
    await api.refused(answer)


@group.case(Need.CHAT)
async def token_ids_in_a_chat(api: Api) -> None:
    stream = await api.stream_chat(return_token_ids=True)
    ids = [token for choice in stream.choices for token in choice.get("token_ids") or []]
    whole = await api.chat(return_token_ids=True)
    equal(ids, whole["choices"][0]["token_ids"], "token_ids")


@group.case()
async def token_ids_in_a_completion(api: Api) -> None:
    stream = await api.stream_completion(return_token_ids=True)
    ids = [token for choice in stream.choices for token in choice.get("token_ids") or []]
    whole = await api.complete(return_token_ids=True)
    equal(ids, whole["choices"][0]["token_ids"], "token_ids")


@group.case(alone=True)
async def a_disconnect_ends_the_request(api: Api) -> None:
    """After a disconnect at the first event, the request must end long before its last token."""
    body = {**api.completion_body(max_tokens=api.facts.max_model_len - 100), "stream": True}
    async with api.http.stream("POST", COMPLETIONS, json=body) as response:
        async for _ in response.aiter_lines():
            break
    for _ in range(100):
        if "num_requests_running" in (text := (await api.get("/metrics")).text):
            running = [
                float(line.rsplit(" ", 1)[1])
                for line in text.splitlines()
                if line.startswith("vllm:num_requests_running")
            ]
            if not any(running):
                return
        await asyncio.sleep(0.05)
    check(False, "the request was still running 5 s after the client disconnected")


@group.each({"two": 2, "five": 5, "all": 1000})
async def chunks_may_have_several_tokens(api: Api, interval: int) -> None:
    """`stream_interval`: the minimum number of tokens of all chunks but the first and the last."""
    stream = await api.stream_completion(stream_interval=interval, return_token_ids=True)
    pieces = [choice["token_ids"] for choice in stream.of(0)]
    check(all(len(piece) >= interval for piece in pieces[1:-1]), f"pieces {pieces}")
    equal(sum(map(len, pieces)), 16, "tokens")
    equal(stream.text(), (await api.complete())["choices"][0]["text"], "text")
