"""Log-probabilities: their format, and the consistency of the numbers."""

from __future__ import annotations

import math
from typing import Any

from conformance.case import Group, Need
from conformance.cases.completions import text_of
from conformance.checks import check, close, equal, has_keys
from conformance.client import CHAT, COMPLETIONS, WIDE, Api

group = Group("logprobs", Need.GENERATE)


async def _completion(api: Api, number: int = 3, **fields: Any) -> Any:
    return (await api.complete(logprobs=number, **fields))["choices"][0]["logprobs"]


async def _chat(api: Api, number: int = 3, **fields: Any) -> Any:
    answer = await api.chat(logprobs=True, top_logprobs=number, **fields)
    return answer["choices"][0]["logprobs"]["content"]


@group.each({"0": 0, "1": 1, "5": 5, "20": 20})
async def of_a_completion(api: Api, number: int) -> None:
    logprobs = await _completion(api, number)
    has_keys(logprobs, ["tokens", "token_logprobs", "top_logprobs", "text_offset"], "logprobs")
    equal(len(logprobs["tokens"]), 16, "number of tokens")
    equal(len(logprobs["token_logprobs"]), 16, "number of token_logprobs")
    equal(len(logprobs["text_offset"]), 16, "number of text_offsets")
    check(all(value <= 0 for value in logprobs["token_logprobs"]), "a log-probability above 0")


@group.each({"1": 1, "5": 5})
async def top_has_the_requested_number(api: Api, number: int) -> None:
    for token, top in zip(
        *[(await _completion(api, number))[k] for k in ("tokens", "top_logprobs")], strict=True
    ):
        # Tokens with equal text (parts of characters) share a key; the sampled token may be added.
        check(1 <= len(top) <= number + 1, f"{len(top)} top_logprobs at {token!r}")


@group.case()
async def the_greedy_token_is_the_first(api: Api) -> None:
    logprobs = await _completion(api, 5)
    for value, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        close(value, max(top.values()), "the greedy token's log-probability", within=1e-5)


@group.case()
async def the_sampled_token_is_among_the_top(api: Api) -> None:
    logprobs = await _completion(api, 2, **WIDE, seed=1)
    for token, value, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        check(token in top, f"{token!r} isn't among {top}")
        check(value <= max(top.values()) + 1e-6, "more likely than the most likely")


@group.case()
async def probabilities_add_up_to_1_at_most(api: Api) -> None:
    for top in (await _completion(api, 20))["top_logprobs"]:
        check(sum(math.exp(value) for value in top.values()) <= 1.01, f"more than 1: {top}")


@group.case()
async def tokens_make_the_text(api: Api) -> None:
    choice = (await api.complete(logprobs=0, skip_special_tokens=False))["choices"][0]
    joined = "".join(choice["logprobs"]["tokens"])
    if "\ufffd" not in joined:
        equal(joined, choice["text"], "the tokens' text")


@group.case()
async def offsets_do_not_go_back(api: Api) -> None:
    offsets = (await _completion(api))["text_offset"]
    equal(offsets, sorted(offsets), "text_offset")


@group.case()
async def requesting_them_does_not_change_the_text(api: Api) -> None:
    equal(text_of(await api.complete(logprobs=5)), text_of(await api.complete()), "text")


@group.case()
async def more_of_them_are_the_same_ones(api: Api) -> None:
    few, many = await _completion(api, 1), await _completion(api, 10)
    for one, other in zip(few["token_logprobs"], many["token_logprobs"], strict=True):
        close(one, other, "a token's log-probability")


@group.case()
async def they_do_not_depend_on_the_temperature(api: Api) -> None:
    """They are computed before temperature and filters, so the first token's top logprobs agree."""
    cold = (await _completion(api, 5, max_tokens=1))["top_logprobs"][0]
    warm = (await _completion(api, 5, max_tokens=1, **WIDE, seed=1))["top_logprobs"][0]
    common = set(cold) & set(warm)
    check(common, "no common token")
    for token in common:
        close(cold[token], warm[token], f"log-probability of {token!r}")


@group.case()
async def of_the_echoed_prompt(api: Api) -> None:
    number = len(api.facts.prompt_ids)
    logprobs = await _completion(api, 2, echo=True, max_tokens=4)
    equal(len(logprobs["tokens"]), number + 4, "number of tokens")
    equal(logprobs["token_logprobs"][0], None, "the first token's log-probability")
    check(all(value is not None for value in logprobs["token_logprobs"][1:]), "another token has no logprob")


@group.case()
async def of_the_prompt_alone(api: Api) -> None:
    logprobs = await _completion(api, 2, echo=True, max_tokens=0)
    equal(len(logprobs["tokens"]), len(api.facts.prompt_ids), "number of tokens")


@group.case()
async def of_the_prompt_are_those_of_generating_it(api: Api) -> None:
    """Greedily generated tokens have the same logprobs when read as a prompt.

    In bfloat16, logits between 16 and 32 are 0.125 apart, and prompts take other kernels than steps.
    """
    generated = (await api.complete(logprobs=1, max_tokens=8, return_token_ids=True))["choices"][0]
    prompt = [*api.facts.prompt_ids, *generated["token_ids"]]
    read = await _completion(api, 1, prompt=prompt, echo=True, max_tokens=1)
    start = len(api.facts.prompt_ids)
    for one, other in zip(
        generated["logprobs"]["token_logprobs"], read["token_logprobs"][start : start + 8], strict=True
    ):
        close(one, other, "a token's log-probability", within=0.15)


@group.each({"0": 0, "3": 3})
async def prompt_logprobs_of_a_completion(api: Api, number: int) -> None:
    positions = (await api.complete(prompt_logprobs=number, max_tokens=1))["choices"][0]["prompt_logprobs"]
    equal(len(positions), len(api.facts.prompt_ids), "number of positions")
    equal(positions[0], None, "the first position")
    for token, position in zip(api.facts.prompt_ids[1:], positions[1:], strict=True):
        has_keys(position, [str(token)], "a position")
        has_keys(position[str(token)], ["logprob", "rank", "decoded_token"], "a token")


@group.case()
async def tokens_as_token_ids(api: Api) -> None:
    logprobs = await _completion(api, 1, return_tokens_as_token_ids=True)
    check(all(token.startswith("token_id:") for token in logprobs["tokens"]), f"{logprobs['tokens']}")


@group.each({"completion": True, "chat": False})
async def none_unless_requested(api: Api, completion: bool) -> None:
    answer = await (api.complete() if completion else api.chat())
    equal(answer["choices"][0]["logprobs"], None, "logprobs")


@group.each({"0": 0, "1": 1, "5": 5, "20": 20}, Need.CHAT)
async def of_a_chat(api: Api, number: int) -> None:
    content = await _chat(api, number)
    equal(len(content), 16, "number of positions")
    for position in content:
        has_keys(position, ["token", "logprob", "bytes", "top_logprobs"], "a position")
        check(position["logprob"] <= 0, f"log-probability {position['logprob']}")
        equal(len(position["top_logprobs"]), number, "number of top_logprobs")


@group.case(Need.CHAT)
async def top_of_a_chat_is_sorted(api: Api) -> None:
    for position in await _chat(api, 5):
        values = [top["logprob"] for top in position["top_logprobs"]]
        equal(values, sorted(values, reverse=True), "top_logprobs")
        close(position["logprob"], values[0], "the greedy token", within=1e-5)


@group.case(Need.CHAT)
async def bytes_are_the_tokens(api: Api) -> None:
    for position in await _chat(api, 2):
        for token in [position, *position["top_logprobs"]]:
            check(token["bytes"] is None or all(0 <= byte < 256 for byte in token["bytes"]), f"{token}")
            if "\ufffd" not in token["token"] and token["bytes"] is not None:
                equal(bytes(token["bytes"]).decode(), token["token"], "bytes")


@group.case(Need.CHAT)
async def prompt_logprobs_of_a_chat(api: Api) -> None:
    answer = await api.chat(prompt_logprobs=1, max_tokens=1)
    equal(len(answer["prompt_logprobs"]), answer["usage"]["prompt_tokens"], "number of positions")


@group.each({"0": 0, "5": 5})
async def streamed_are_the_same_of_a_completion(api: Api, number: int) -> None:
    stream = await api.stream_completion(logprobs=number)
    whole = await _completion(api, number)
    pieces = [choice["logprobs"] for choice in stream.choices if choice["logprobs"]]
    equal([token for piece in pieces for token in piece["tokens"]], whole["tokens"], "tokens")
    equal([place for piece in pieces for place in piece["text_offset"]], whole["text_offset"], "text_offset")
    values = [value for piece in pieces for value in piece["token_logprobs"]]
    for one, other in zip(values, whole["token_logprobs"], strict=True):
        close(one, other, "a token's log-probability")


@group.each({"0": 0, "5": 5}, Need.CHAT)
async def streamed_are_the_same_of_a_chat(api: Api, number: int) -> None:
    stream = await api.stream_chat(logprobs=True, top_logprobs=number)
    pieces = [choice["logprobs"]["content"] for choice in stream.choices if choice.get("logprobs")]
    streamed = [position for piece in pieces for position in piece]
    whole = await _chat(api, number)
    equal([position["token"] for position in streamed], [position["token"] for position in whole], "tokens")
    for one, other in zip(streamed, whole, strict=True):
        close(one["logprob"], other["logprob"], "a token's log-probability")


@group.case()
async def with_n_each_choice_has_its_own(api: Api) -> None:
    answer = await api.complete(n=2, logprobs=1, **WIDE, seed=1)
    for choice in answer["choices"]:
        equal(len(choice["logprobs"]["tokens"]), 16, "number of tokens")


@group.each(
    {
        "negative": (COMPLETIONS, {"logprobs": -2}),
        "too-many": (COMPLETIONS, {"logprobs": 10**6}),
        "text": (COMPLETIONS, {"logprobs": "many"}),
        "prompt-logprobs-too-many": (COMPLETIONS, {"prompt_logprobs": 10**6}),
        "prompt-logprobs-negative": (COMPLETIONS, {"prompt_logprobs": -5}),
        "prompt-logprobs-streamed": (COMPLETIONS, {"prompt_logprobs": 1, "stream": True}),
    }
)
async def refuses(api: Api, request: tuple[str, dict[str, Any]]) -> None:
    path, fields = request
    await api.refused(await api.post(path, api.completion_body(**fields)))


@group.each(
    {
        "top-too-many": {"logprobs": True, "top_logprobs": 10**6},
        "top-negative": {"logprobs": True, "top_logprobs": -3},
        "top-without-logprobs": {"logprobs": False, "top_logprobs": 2},
        "a-number": {"logprobs": 5.5},
    },
    Need.CHAT,
)
async def refuses_in_a_chat(api: Api, fields: dict[str, Any]) -> None:
    await api.refused(await api.post(CHAT, api.chat_body(**fields)))


@group.case()
async def tokens_may_be_named(api: Api) -> None:
    """Each position has the logprobs of the named tokens and of its own token."""
    named = await api.tokens_of("Hello there")
    fields = {"logprobs": 0, "return_tokens_as_token_ids": True, "logprob_token_ids": named}
    logprobs = (await api.complete(**fields))["choices"][0]["logprobs"]
    for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True):
        equal(set(top), {token, *(f"token_id:{token_id}" for token_id in named)}, "tokens with logprobs")


@group.each({"without-logprobs": {}, "empty": {"logprobs": 1, "logprob_token_ids": []}})
async def naming_them_is_refused(api: Api, fields: dict[str, Any]) -> None:
    body = api.completion_body(**{"logprob_token_ids": [1], **fields})
    await api.refused(await api.post(COMPLETIONS, body))
