"""A custom tool's text is extracted from the model's JSON, however it is split and written."""

from __future__ import annotations

import json

import pytest

from engine.server.openai.responses.custom_input import CustomInput

PATCH = "*** Begin Patch\n*** Update File: a.py\n-x = \"é\\n\"\n+x = '🙂'\t\u2028\n*** End Patch\n"


def read(raw: str, size: int) -> tuple[str, str]:
    """The streamed text for fragments of `size` characters, and the whole text."""
    reader = CustomInput()
    streamed = "".join(reader.feed(raw[at : at + size]) for at in range(0, len(raw), size))
    return streamed + reader.finish(), reader.text


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_the_text_does_not_depend_on_how_it_is_split(size: int, ascii_only: bool) -> None:
    raw = json.dumps({"input": PATCH}, ensure_ascii=ascii_only)
    assert read(raw, size) == (PATCH, PATCH)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ('{ "input" :\n "a" }', "a"),
        ('"bare"', "bare"),
        ('{"patch": "a"}', "a"),
        ('{"a": "b", "c": "d"}', '{"a": "b", "c": "d"}'),
        ("no JSON", "no JSON"),
        ("{}", ""),
        ("", ""),
        ('{"input": "cut o', "cut o"),
        ('{"input": "cut \\u00', "cut "),
        ('{"input": "lone \\ud83d end"}', "lone \ufffd end"),
        ('{"input": "odd \\q"}', "odd \\q"),
        ('{"input": "a", "more": "b"}', "a"),
        ("[1]", "[1]"),
    ],
)
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_json_of_another_form_is_taken_as_the_text(raw: str, text: str, size: int) -> None:
    assert read(raw, size) == (text, text)


def test_the_text_is_streamed() -> None:
    reader = CustomInput()
    assert [reader.feed(piece) for piece in ('{"inp', 'ut": "a', "b\\", 'nc"', "}")] == [
        "",
        "a",
        "b",
        "\nc",
        "",
    ]
