"""POST /v1/completions without streaming."""

from __future__ import annotations

import time
from typing import Any

from conformance.case import Group, Need
from conformance.checks import check, equal, has_keys
from conformance.client import OMIT, Api

group = Group("completions", Need.GENERATE)

# Neutral values of OpenAI's and vLLM's fields: each must change nothing.
NEUTRAL: dict[str, Any] = {
    "allowed_token_ids": None,
    "bad_words": [],
    "cache_salt": None,
    "frequency_penalty": 0,
    "include_stop_str_in_output": False,
    "length_penalty": 1.0,
    "logit_bias": None,
    "logprobs": None,
    "min_p": 0.0,
    "min_tokens": 0,
    "n": 1,
    "presence_penalty": 0.0,
    "priority": 0,
    "prompt_logprobs": None,
    "repetition_penalty": 1.0,
    "response_format": {"type": "text"},
    "return_token_ids": False,
    "return_tokens_as_token_ids": False,
    "seed": 7,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "stop": None,
    "stop-empty": [],
    "stop_token_ids": [],
    "stream": False,
    "stream_options": None,
    "structured_outputs": None,
    "truncate_prompt_tokens": None,
    "user": "someone",
    "use_beam_search": False,
}


def text_of(answer: Any, index: int = 0) -> str:
    text: str = answer["choices"][index]["text"]
    return text


@group.case()
async def an_answer_has_its_fields(api: Api) -> None:
    answer = await api.complete()
    has_keys(answer, ["id", "object", "created", "model", "choices", "usage"], "the answer")
    has_keys(answer["choices"][0], ["index", "text", "logprobs", "finish_reason"], "a choice")


@group.case()
async def an_answer_is_a_text_completion(api: Api) -> None:
    answer = await api.complete()
    equal(answer["object"], "text_completion", "object")
    equal(answer["model"], api.facts.model, "model")
    check(str(answer["id"]).startswith("cmpl-"), f"id {answer['id']}")


@group.case()
async def created_is_now(api: Api) -> None:
    check(abs((await api.complete())["created"] - time.time()) < 300, "created is far from now")


@group.case()
async def ids_differ(api: Api) -> None:
    first, second = await api.complete(), await api.complete()
    check(first["id"] != second["id"], f"two answers have the id {first['id']}")


@group.case()
async def usage_adds_up(api: Api) -> None:
    usage = (await api.complete())["usage"]
    equal(usage["prompt_tokens"], len(api.facts.prompt_ids), "prompt_tokens")
    equal(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"], "total_tokens")


@group.each({str(number): number for number in (1, 2, 7, 33)})
async def max_tokens_limits(api: Api, number: int) -> None:
    answer = await api.complete(max_tokens=number)
    equal(answer["usage"]["completion_tokens"], number, "completion_tokens")
    equal(answer["choices"][0]["finish_reason"], "length", "finish_reason")


@group.case()
async def sixteen_tokens_by_default(api: Api) -> None:
    answer = await api.complete(max_tokens=OMIT)
    equal(answer["usage"]["completion_tokens"], 16, "completion_tokens")


@group.case()
async def fewer_tokens_are_the_beginning_of_more(api: Api) -> None:
    short, long = await api.complete(max_tokens=4), await api.complete(max_tokens=12)
    # The last character of the short text may be incomplete.
    check(text_of(long).startswith(text_of(short).rstrip("\ufffd")), f"{text_of(short)!r}, {text_of(long)!r}")


@group.case()
async def the_same_twice(api: Api) -> None:
    equal(text_of(await api.complete()), text_of(await api.complete()), "text")


@group.each({name: {name.removesuffix("-empty"): value} for name, value in NEUTRAL.items()})
async def neutral_values_change_nothing(api: Api, fields: dict[str, Any]) -> None:
    answer = await api.complete(**fields)
    equal(text_of(answer), text_of(await api.complete()), "text")


# Prompts


@group.each({"a-list-of-one": "texts", "token-ids": "ids", "a-list-of-token-ids": "lists"})
async def a_prompt_may_be(api: Api, shape: str) -> None:
    ids = api.facts.prompt_ids
    prompt = {"texts": [api.facts.prompt], "ids": ids, "lists": [ids]}[shape]
    answer = await api.complete(prompt)
    equal(text_of(answer), text_of(await api.complete()), "text")
    equal(answer["usage"]["prompt_tokens"], len(ids), "prompt_tokens")


@group.each({"two": 2, "three": 3, "eight": 8})
async def prompts_are_answered_in_order(api: Api, number: int) -> None:
    prompts = [f"{api.facts.prompt} {count}" for count in range(number)]
    answer = await api.complete(prompts, max_tokens=6)
    equal([choice["index"] for choice in answer["choices"]], list(range(number)), "indices")
    single = [text_of(await api.complete(prompt, max_tokens=6)) for prompt in prompts]
    equal([choice["text"] for choice in answer["choices"]], single, "texts")


@group.case()
async def prompts_of_token_ids_are_answered_in_order(api: Api) -> None:
    ids = api.facts.prompt_ids
    answer = await api.complete([ids, ids[:-1]], max_tokens=6)
    single = [text_of(await api.complete(prompt, max_tokens=6)) for prompt in (ids, ids[:-1])]
    equal([choice["text"] for choice in answer["choices"]], single, "texts")


@group.case()
async def usage_counts_all_prompts(api: Api) -> None:
    usage = (await api.complete([api.facts.prompt] * 3, max_tokens=5))["usage"]
    equal(usage["prompt_tokens"], 3 * len(api.facts.prompt_ids), "prompt_tokens")
    equal(usage["completion_tokens"], 15, "completion_tokens")


@group.each({str(number): number for number in (2, 3, 5)})
async def n_choices(api: Api, number: int) -> None:
    answer = await api.complete(n=number, temperature=1.0, seed=3)
    equal([choice["index"] for choice in answer["choices"]], list(range(number)), "indices")
    equal(answer["usage"]["completion_tokens"], 16 * number, "completion_tokens")
    equal(answer["usage"]["prompt_tokens"], len(api.facts.prompt_ids), "prompt_tokens")


@group.case()
async def n_choices_of_each_prompt(api: Api) -> None:
    prompts = [api.facts.prompt, f"{api.facts.prompt} a"]
    answer = await api.complete(prompts, n=2, temperature=1.0, seed=3, max_tokens=4)
    equal([choice["index"] for choice in answer["choices"]], [0, 1, 2, 3], "indices")


@group.case()
async def n_choices_are_equal_when_greedy(api: Api) -> None:
    answer = await api.complete(n=3, max_tokens=8)
    equal(len({choice["text"] for choice in answer["choices"]}), 1, "number of different texts")


# Echo


@group.case()
async def echo_puts_the_prompt_first(api: Api) -> None:
    answer = await api.complete(echo=True)
    equal(text_of(answer), api.facts.prompt + text_of(await api.complete()), "text")


@group.case()
async def echo_alone_generates_nothing(api: Api) -> None:
    answer = await api.complete(echo=True, max_tokens=0)
    equal(text_of(answer), api.facts.prompt, "text")
    equal(answer["usage"]["completion_tokens"], 0, "completion_tokens")


@group.case()
async def echo_of_token_ids(api: Api) -> None:
    answer = await api.complete(api.facts.prompt_ids, echo=True, max_tokens=4)
    equal(text_of(answer), text_of(await api.complete(echo=True, max_tokens=4)), "text")


@group.case()
async def echo_of_several_prompts(api: Api) -> None:
    prompts = [f"{api.facts.prompt} {word}" for word in ("here", "there")]
    answer = await api.complete(prompts, echo=True, max_tokens=3)
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        check(choice["text"].startswith(prompt), f"{choice['text']!r} doesn't begin with {prompt!r}")


@group.case()
async def echo_with_n(api: Api) -> None:
    answer = await api.complete(echo=True, n=2, temperature=1.0, max_tokens=3)
    for choice in answer["choices"]:
        check(choice["text"].startswith(api.facts.prompt), f"{choice['text']!r}")


# Limits and ids


@group.case()
async def the_remaining_context_limits_the_output(api: Api) -> None:
    room = 5
    prompt = (api.facts.prompt_ids * api.facts.max_model_len)[: api.facts.max_model_len - room]
    answer = await api.complete(prompt, max_tokens=room)
    equal(answer["usage"]["completion_tokens"], room, "completion_tokens")
    equal(answer["choices"][0]["finish_reason"], "length", "finish_reason")


@group.case()
async def a_prompt_longer_than_the_context_is_400(api: Api) -> None:
    prompt = (api.facts.prompt_ids * api.facts.max_model_len)[: api.facts.max_model_len + 1]
    body = api.completion_body(prompt, max_tokens=1)
    error = await api.refused(await api.post("/v1/completions", body))
    check(str(api.facts.max_model_len) in error["message"], f"the limit is missing: {error['message']}")


@group.case()
async def truncated_prompts_keep_their_end(api: Api) -> None:
    ids = api.facts.prompt_ids
    answer = await api.complete(ids, truncate_prompt_tokens=len(ids) - 1)
    equal(answer["usage"]["prompt_tokens"], len(ids) - 1, "prompt_tokens")
    equal(text_of(answer), text_of(await api.complete(ids[1:])), "text")


@group.case()
async def special_tokens_may_be_left_out(api: Api) -> None:
    plain = await api.tokens_of(api.facts.prompt)
    answer = await api.complete(add_special_tokens=False, max_tokens=1)
    equal(answer["usage"]["prompt_tokens"], len(plain), "prompt_tokens")


@group.case()
async def a_request_id_of_the_clients(api: Api) -> None:
    answer = await api.complete(request_id="conformance-completion", max_tokens=1)
    equal(answer["id"], "cmpl-conformance-completion", "id")


@group.case()
async def a_request_id_in_the_header(api: Api) -> None:
    body = api.completion_body(max_tokens=1)
    answer = await api.post("/v1/completions", body, headers={"X-Request-Id": "conformance-header"})
    equal(answer.ok()["id"], "cmpl-conformance-header", "id")


@group.case()
async def token_ids_on_request(api: Api) -> None:
    choice = (await api.complete(return_token_ids=True))["choices"][0]
    equal(choice["prompt_token_ids"], api.facts.prompt_ids, "prompt_token_ids")
    equal(len(choice["token_ids"]), 16, "number of token_ids")


@group.case()
async def the_token_ids_are_the_text(api: Api) -> None:
    choice = (await api.complete(return_token_ids=True, skip_special_tokens=False))["choices"][0]
    text = await api.text_of([*api.facts.prompt_ids, *choice["token_ids"]])
    check(text.rstrip("\ufffd").endswith(choice["text"].rstrip("\ufffd")), f"{text!r}, {choice['text']!r}")
