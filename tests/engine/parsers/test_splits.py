"""An output gives the same events however it is cut into pieces, and nothing is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.parsers.tools import TOOL_FORMATS
from tests.engine.parsers.reading import cut, cuts, make_tool_parser, read, tool

PARSERS = ("hermes", "qwen3_coder", "llama3_json", "mistral")

TOOLS = [
    tool(
        "f",
        {
            "type": "object",
            "properties": {
                "a": {"type": "string"},
                "n": {"type": "integer"},
                "o": {"type": "object"},
                "s": {"type": ["string", "null"]},
                "e": {"enum": ["x y", 3]},
            },
        },
    ),
    tool("g"),
    tool("get-it.now"),
]

# Scraps of all formats, of which outputs are made that are nearly calls, calls, or broken ones.
SCRAPS = [
    *(
        "<tool_call>",
        "</tool_call>",
        "\n",
        " ",
        '{"name": "f", "arguments": {',
        '"a": "',
        '"',
        "}",
        "}}",
        "{",
    ),
    *('{"name": "g", "parameters": {}}', "[", "]", "; ", ", ", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]"),
    *("[CALL_ID]", "<function=f>", "<function=", "<function=nobody>", "</function>", "<parameter=a>", "g"),
    *("<parameter=n>", "</parameter>", "<parameter=o>", "<parameter=s>", "<parameter=e>", "12", "null", "f"),
    *(
        "\\",
        '\\"',
        "x",
        "é€😀",
        "<",
        "</",
        "\ufeff",
        '{"arguments": {"a": 1}, "name": "f"}',
        '{"type": "function"',
    ),
    *(
        '"name"',
        ":",
        '{"answer": ',
        "</function>\n</tool_call>",
        "\n<parameter=n>",
        '[{"name": "f",',
        "\u2028",
    ),
]
outputs = st.lists(st.one_of(st.sampled_from(SCRAPS), st.text(max_size=3)), max_size=14).map("".join)


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_any_split_gives_what_the_whole_gives(name: str, data: st.DataObject) -> None:
    output = data.draw(outputs)
    whole = read(name, [output], TOOLS)

    assert read(name, cut(output, data.draw(cuts(len(output)))), TOOLS) == whole
    assert read(name, list(output), TOOLS) == whole


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=250, deadline=None)
@given(output=outputs)
def test_an_output_without_calls_is_unchanged_content(name: str, output: str) -> None:
    found = read(name, list(output), TOOLS)

    if not found.calls:
        assert found.text == output


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=100, deadline=None)
@given(before=st.text(st.characters(exclude_characters="<{[", exclude_categories=["Cs"])))
def test_text_that_is_no_delimiter_is_reported_at_once_except_trailing_blanks(name: str, before: str) -> None:
    reported = "".join(
        getattr(event, "text", "") for event in make_tool_parser(name, TOOLS).feed(before + "x")
    )

    assert reported == before + "x"


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8) | st.sampled_from(SCRAPS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
calls = st.lists(
    st.tuples(
        st.sampled_from(["f", "g", "get-it.now"]), st.dictionaries(st.text(max_size=5), values, max_size=3)
    ),
    min_size=1,
    max_size=3,
)


def _json(value: Any, is_ascii: bool) -> str:
    return json.dumps(value, ensure_ascii=is_ascii)


def _hermes(made: list[tuple[str, Any]], is_ascii: bool) -> str:
    return "\n".join(
        f'<tool_call>\n{{"name": "{name}", "arguments": {_json(value, is_ascii)}}}\n</tool_call>'
        for name, value in made
    )


def _llama(made: list[tuple[str, Any]], is_ascii: bool) -> str:
    return "; ".join(f'{{"name": "{name}", "parameters": {_json(value, is_ascii)}}}' for name, value in made)


def _mistral_list(made: list[tuple[str, Any]], is_ascii: bool) -> str:
    written = [{"name": name, "arguments": value} for name, value in made]
    return f"[TOOL_CALLS] {_json(written, is_ascii)}"


def _mistral(made: list[tuple[str, Any]], is_ascii: bool, delimiter: str = "[ARGS]") -> str:
    return "".join(f"[TOOL_CALLS]{name}{delimiter}{_json(value, is_ascii)}" for name, value in made)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("hermes", _hermes),
        ("llama3_json", _llama),
        ("llama3_json", lambda made, is_ascii: "<|python_tag|>" + _llama(made, is_ascii)),
        ("mistral", _mistral_list),
        ("mistral", lambda made, is_ascii: _mistral_list(made, is_ascii).removeprefix("[TOOL_CALLS] ")),
        ("mistral", _mistral),
        ("mistral", lambda made, is_ascii: _mistral(made, is_ascii, delimiter="")),
    ],
)
@settings(max_examples=80, deadline=None)
@given(made=calls, is_ascii=st.booleans(), data=st.data())
def test_written_calls_are_parsed(
    name: str, write: Any, made: list[tuple[str, Any]], is_ascii: bool, data: st.DataObject
) -> None:
    output = write(made, is_ascii)

    found = read(name, cut(output, data.draw(cuts(len(output)))), TOOLS)

    assert found.text == ""
    assert found.values == made
    for (_, value), call in zip(made, found.calls, strict=True):
        assert call.arguments == _json(value, is_ascii), "as the model wrote it"


coder_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda text: "<parameter=" not in text and "</" not in text
)


@settings(max_examples=150, deadline=None)
@given(
    made=st.fixed_dictionaries(
        {},
        optional={
            "a": coder_text,
            "n": st.integers(),
            "o": st.dictionaries(coder_text, st.integers() | coder_text | st.none(), max_size=3),
            "s": coder_text.filter(lambda text: text.strip().lower() not in ("null", "none")) | st.none(),
            "e": st.sampled_from(["x y", 3]),
            "other": coder_text,
        },
    ),
    data=st.data(),
)
def test_coder_values_are_read_by_their_types(made: dict[str, Any], data: st.DataObject) -> None:
    written = "".join(
        f"<parameter={key}>\n{value if isinstance(value, str) else json.dumps(value)}\n</parameter>\n"
        for key, value in made.items()
    )
    output = f"<tool_call>\n<function=f>\n{written}</function>\n</tool_call>"

    found = read("qwen3_coder", cut(output, data.draw(cuts(len(output)))), TOOLS)

    assert found.text == ""
    assert found.values == [("f", made)]


def test_every_alias_parses_like_its_original() -> None:
    output = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'

    assert read("qwen3_json", [output]) == read("hermes", [output])
    names = [name for form in TOOL_FORMATS for name in form.names]
    assert sorted(names) == sorted([*PARSERS, "qwen3_json", "qwen3_xml", "llama4_json"])
