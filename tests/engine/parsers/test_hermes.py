"""Hermes and Qwen3: calls as JSON between delimiters, however the text is split."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.text.parsers.events import CallArguments, CallBegun, CallEnded, TextPiece
from engine.text.parsers.hermes import HermesParser
from tests.engine.parsers.reading import CALLS, cut, cuts, read, splits_of


def written(name: str, arguments: Any, **how: Any) -> str:
    call = json.dumps({"name": name, "arguments": arguments}, **how)
    return f"<tool_call>\n{call}\n</tool_call>"


WEATHER = written("get_weather", {"city": "Paris"})


@given(CALLS, st.sampled_from(["", "Let me see.\n", "{not yet} <tool"]), st.booleans(), cuts())
def test_calls_are_parsed_back(
    calls: list[tuple[str, Any]], before: str, ascii_only: bool, at: list[int]
) -> None:
    text = before + "\n".join(written(*call, ensure_ascii=ascii_only) for call in calls)
    output = read("hermes", cut(text, at))
    assert output.values == calls
    assert output.text == before.rstrip()


@given(CALLS, cuts())
def test_arguments_are_exactly_the_text_that_the_model_wrote(
    calls: list[tuple[str, Any]], at: list[int]
) -> None:
    bodies = [json.dumps(arguments, indent=1, ensure_ascii=False) for _, arguments in calls]
    text = "".join(
        f'<tool_call>{{"name":{json.dumps(name)} , "arguments":  {body} }}</tool_call>'
        for (name, _), body in zip(calls, bodies, strict=True)
    )
    assert [call.arguments for call in read("hermes", cut(text, at)).calls] == bodies


FRAGMENTS = [
    *(
        "<tool_call>",
        "</tool_call>",
        "<tool_",
        "call>",
        "</",
        "<",
        "\n",
        " ",
        "x",
        "é🙂",
        '"',
        "\\",
        ",",
        ":",
    ),
    *(
        "{",
        "}",
        "[",
        "]",
        '{"name": "f", "arguments": ',
        '{"name": "f"',
        '"arguments": {"a": "</tool_call>"}',
    ),
    *('{"arguments": {"a": 1}, "name": "f"}', '{"name": "f", "arguments": "{\\"a\\": 1}"}', WEATHER),
    *('{"a": [1, {"b": "}"}]}', "null", "12", '{"name": 3}', '{"type": "function", "name": "g"}'),
]
RAMBLING = st.lists(st.sampled_from(FRAGMENTS), max_size=10).map("".join)


@given(RAMBLING, cuts(150))
@example('<tool_call>{"name": "f", "arguments": {]<tool_call>', [40])
def test_however_a_text_is_split_the_events_add_up_to_the_same(text: str, at: list[int]) -> None:
    assert read("hermes", cut(text, at)).parts == read("hermes", [text]).parts


@given(RAMBLING)
def test_single_characters_add_up_to_the_whole(text: str) -> None:
    assert read("hermes", list(text)).parts == read("hermes", [text]).parts


@given(RAMBLING)
def test_only_blanks_delimiters_and_the_frames_of_calls_are_dropped(text: str) -> None:
    """Each visible character is reported, belongs to a call, or is part of a call's frame."""
    output = read("hermes", [text])
    if not output.calls:
        assert output.text == text
    shown = "".join(part if isinstance(part, str) else part.arguments for part in output.parts)
    assert is_subsequence(output.text, text)
    if not any(call.arguments and call.arguments not in text for call in output.calls):
        assert is_subsequence(shown, text)


def is_subsequence(part: str, whole: str) -> bool:
    rest = iter(whole)
    return all(character in rest for character in part)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("", "", []),
        ("plain", "plain", []),
        ("1 < 2 and <tool", "1 < 2 and <tool", []),
        (" \n", " \n", []),
        (WEATHER, "", [("get_weather", {"city": "Paris"})]),
        (f"One.\n\n{WEATHER}\n", "One.", [("get_weather", {"city": "Paris"})]),
        (f"{WEATHER}\nDone.", "\nDone.", [("get_weather", {"city": "Paris"})]),
        (written("f", {}), "", [("f", {})]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [("f", {})]),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", {})]),
        ('<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>', "", [("f", {"a": 1})]),
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [("f", {"a": 1})]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", {"a": 1})]),
        (written("f", {"a": "</tool_call>"}), "", [("f", {"a": "</tool_call>"})]),
        (written("f", {"a": '<tool_call>{"name'}), "", [("f", {"a": '<tool_call>{"name'})]),
        (written("f", {"a": {"b": ["}", '"', "\\"]}}), "", [("f", {"a": {"b": ["}", '"', "\\"]}})]),
        (written("f\u00e9.\u4e2d", {}), "", [("f\u00e9.\u4e2d", {})]),
        # The end delimiter may be missing, between calls and at the end.
        (WEATHER.removesuffix("\n</tool_call>"), "", [("get_weather", {"city": "Paris"})]),
        (
            WEATHER.removesuffix("</tool_call>") + WEATHER,
            "",
            [("get_weather", {"city": "Paris"})] * 2,
        ),
        # Text that is not a call is unchanged, and parsing continues after it.
        ("<tool_call>", "<tool_call>", []),
        ("<tool_call>soon</tool_call>", "<tool_call>soon</tool_call>", []),
        ("<tool_call>\n{}\n</tool_call>", "<tool_call>\n{}\n</tool_call>", []),
        ('<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', []),
        ('<tool_call>{"city": "Paris"}</tool_call>', '<tool_call>{"city": "Paris"}</tool_call>', []),
        ('<tool_call>{"name": "f", ', '<tool_call>{"name": "f", ', []),
        (f"<tool_call>oh {WEATHER}", "<tool_call>oh", [("get_weather", {"city": "Paris"})]),
        (
            f'<tool_call>{{"city": }}</tool_call>\n{WEATHER}',
            '<tool_call>{"city": }</tool_call>',
            [("get_weather", {"city": "Paris"})],
        ),
    ],
)
def test_examples(text: str, content: str, calls: list[tuple[str, Any]]) -> None:
    for pieces in splits_of(text):
        output = read("hermes", pieces)
        assert (output.text, output.values) == (content, calls), pieces


def test_text_is_reported_at_once_and_arguments_as_they_arrive() -> None:
    parser = HermesParser()
    assert parser.feed("Hello <") == [TextPiece("Hello")]
    assert parser.feed("b") == [TextPiece(" <b")]
    assert parser.feed(">\n<tool_call>\n") == [TextPiece(">")]
    assert parser.feed('{"name": "f", "argum') == []
    assert parser.feed('ents": {') == [CallBegun(0, "f"), CallArguments(0, "{")]
    assert parser.feed('"a": "x') == [CallArguments(0, '"a": "x')]
    assert parser.feed('y"}') == [CallArguments(0, 'y"}')]
    assert parser.feed("}\n</tool_") == [CallEnded(0)]
    assert parser.feed("call>") + parser.finish() == []


def test_a_call_that_is_cut_off_keeps_its_arguments_so_far() -> None:
    output = read("hermes", [WEATHER[:-20]])
    [call] = output.calls
    assert call.has_ended
    assert WEATHER[:-20].endswith(call.arguments)
