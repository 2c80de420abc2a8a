"""The end of the output: stop strings, stop tokens, finish_reason and stop_reason."""

from __future__ import annotations

from typing import Any

from conformance.case import Group, Need
from conformance.cases.completions import text_of
from conformance.checks import NotApplicable, check, equal
from conformance.client import COMPLETIONS, Api
from conformance.probe import NUM_TOKENS

group = Group("stops", Need.GENERATE)


def _stop_in(text: str, length: int) -> tuple[str, int]:
    """A string of this length from the middle of `text`, and its first position."""
    for start in range(len(text) // 3, len(text) - length):
        stop = text[start : start + length]
        if "\ufffd" not in stop and text.find(stop) > 0:
            return stop, text.find(stop)
    raise NotApplicable(f"the model's text {text!r} has no place to stop at")


async def _complete(api: Api, **fields: Any) -> Any:
    return await api.complete(max_tokens=NUM_TOKENS, **fields)


@group.each({str(number): number for number in (1, 2, 3, 5, 8)})
async def a_stop_string_ends_the_answer(api: Api, length: int) -> None:
    stop, place = _stop_in(api.facts.text, length)
    answer = await _complete(api, stop=stop)
    equal(text_of(answer), api.facts.text[:place], "text")
    equal(answer["choices"][0]["finish_reason"], "stop", "finish_reason")
    equal(answer["choices"][0]["stop_reason"], stop, "stop_reason")


@group.each({"1": 1, "3": 3, "8": 8})
async def a_stop_string_may_be_shown(api: Api, length: int) -> None:
    stop, place = _stop_in(api.facts.text, length)
    answer = await _complete(api, stop=stop, include_stop_str_in_output=True)
    equal(text_of(answer), api.facts.text[: place + length], "text")


@group.each({"1": 1, "3": 3, "8": 8})
async def a_stop_string_never_shows_in_a_stream(api: Api, length: int) -> None:
    stop, place = _stop_in(api.facts.text, length)
    stream = await api.stream_completion(max_tokens=NUM_TOKENS, stop=stop)
    equal(stream.text(), api.facts.text[:place], "text")
    equal(stream.end()["finish_reason"], "stop", "finish_reason")
    equal(stream.end()["stop_reason"], stop, "stop_reason")


@group.case()
async def of_several_stop_strings_the_first_in_the_text_counts(api: Api) -> None:
    stop, place = _stop_in(api.facts.text, 2)
    answer = await _complete(api, stop=["@@@@", stop, "\u2603\u2603"])
    equal(text_of(answer), api.facts.text[:place], "text")
    equal(answer["choices"][0]["stop_reason"], stop, "stop_reason")


@group.case()
async def four_stop_strings_are_possible(api: Api) -> None:
    answer = await _complete(api, stop=["@@@1", "@@@2", "@@@3", "@@@4"])
    equal(text_of(answer), api.facts.text, "text")


@group.case()
async def an_unused_stop_string_changes_nothing(api: Api) -> None:
    answer = await _complete(api, stop="\u2603\u2603\u2603")
    equal(text_of(answer), api.facts.text, "text")
    equal(answer["choices"][0]["finish_reason"], "length", "finish_reason")
    equal(answer["choices"][0]["stop_reason"], None, "stop_reason")


@group.case()
async def a_partial_stop_string_is_sent_at_the_end(api: Api) -> None:
    text = api.facts.text.rstrip("\ufffd")
    stream = await api.stream_completion(max_tokens=NUM_TOKENS, stop=f"{text[-2:]}\u2603")
    equal(stream.text(), api.facts.text, "text")


@group.case()
async def a_stop_in_the_prompt_does_not_count(api: Api) -> None:
    if api.facts.prompt in api.facts.text:
        raise NotApplicable("the model repeats its prompt")
    answer = await _complete(api, stop=api.facts.prompt, echo=True)
    equal(text_of(answer), api.facts.prompt + api.facts.text, "text")


def _first_new(ids: list[int]) -> int:
    """The first position, after the beginning, of a token that has not occurred before."""
    for place in range(3, len(ids)):
        if ids[place] not in ids[:place]:
            return place
    raise NotApplicable(f"the model repeats itself: {ids}")


@group.case()
async def a_stop_token_ends_the_answer(api: Api) -> None:
    place = _first_new(api.facts.token_ids)
    token = api.facts.token_ids[place]
    answer = await _complete(api, stop_token_ids=[token], return_token_ids=True)
    choice = answer["choices"][0]
    equal(choice["finish_reason"], "stop", "finish_reason")
    equal(choice["stop_reason"], token, "stop_reason")
    equal(answer["usage"]["completion_tokens"], place + 1, "completion_tokens")
    check(api.facts.text.startswith(choice["text"].rstrip("\ufffd")), f"text {choice['text']!r}")


@group.case()
async def a_stop_token_may_be_shown(api: Api) -> None:
    place = _first_new(api.facts.token_ids)
    fields = {"stop_token_ids": [api.facts.token_ids[place]], "include_stop_str_in_output": True}
    shown = text_of(await _complete(api, **fields))
    hidden = text_of(await _complete(api, stop_token_ids=fields["stop_token_ids"]))
    check(len(shown) >= len(hidden), f"shown {shown!r}, hidden {hidden!r}")


@group.case()
async def a_stop_token_waits_for_min_tokens(api: Api) -> None:
    place = _first_new(api.facts.token_ids)
    answer = await _complete(api, stop_token_ids=[api.facts.token_ids[place]], min_tokens=place + 3)
    check(answer["usage"]["completion_tokens"] >= place + 3, f"usage {answer['usage']}")


@group.case()
async def a_stop_string_waits_for_min_tokens(api: Api) -> None:
    stop, _ = _stop_in(api.facts.text, 1)
    answer = await _complete(api, stop=stop, min_tokens=NUM_TOKENS - 2)
    check(answer["usage"]["completion_tokens"] >= NUM_TOKENS - 2, f"usage {answer['usage']}")


@group.case()
async def each_of_n_choices_stops_for_itself(api: Api) -> None:
    stop, place = _stop_in(api.facts.text, 2)
    answer = await _complete(api, stop=stop, n=2)
    for choice in answer["choices"]:
        equal(choice["text"], api.facts.text[:place], "text")
        equal(choice["finish_reason"], "stop", "finish_reason")


@group.case()
async def each_prompt_stops_for_itself(api: Api) -> None:
    stop, place = _stop_in(api.facts.text, 2)
    answer = await api.complete(
        [api.facts.prompt, f"{api.facts.prompt} else"], max_tokens=NUM_TOKENS, stop=stop
    )
    equal(text_of(answer), api.facts.text[:place], "text of the first")


@group.each(
    {
        "an-empty-stop": {"stop": ""},
        "an-empty-stop-in-a-list": {"stop": ["a", ""]},
        "a-number": {"stop": 5},
        "numbers": {"stop": [1, 2]},
        "stop-tokens-as-text": {"stop_token_ids": ["a"]},
        "more-min-than-max": {"min_tokens": 17, "max_tokens": 16},
        "negative-min": {"min_tokens": -1},
    }
)
async def refuses(api: Api, fields: dict[str, Any]) -> None:
    await api.refused(await api.post(COMPLETIONS, api.completion_body(**fields)))


@group.case(Need.CHAT)
async def a_stop_string_ends_a_chat(api: Api) -> None:
    fields = {"max_tokens": NUM_TOKENS, "reasoning_effort": None}
    whole = (await api.chat(**fields))["choices"][0]["message"]["content"] or ""
    stop, place = _stop_in(whole, 2)
    choice = (await api.chat(**fields, stop=stop))["choices"][0]
    equal(choice["message"]["content"], whole[:place], "content")
    equal(choice["finish_reason"], "stop", "finish_reason")
    equal(choice["stop_reason"], stop, "stop_reason")
