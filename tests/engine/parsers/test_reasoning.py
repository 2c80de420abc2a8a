"""Reasoning is split from answers, however the text is split."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.text.parsers.choice import detect_format, named_format
from engine.text.parsers.reasoning import (
    END,
    REASONING_FORMATS,
    START,
    OutputKind,
    ReasoningFormat,
    ReasoningParser,
)
from tests.engine.parsers.reading import cut, cuts, splits_of

WORDS = st.text("ab<>/think \n🙂é", max_size=30)
RAMBLING = st.lists(
    st.sampled_from(
        [START, END, "<", "<th", "ink>", "</", "think", "a", " ", "\n", "\n\n", "é🙂", "<tool_call>"]
    ),
    max_size=9,
).map("".join)
PARSERS = st.sampled_from(["qwen3", "deepseek_r1"])
STATES = st.sampled_from([True, False, None])


def split(name: str, pieces: Sequence[str], *, inside: bool | None = None) -> tuple[str, str]:
    """The reasoning and the answer."""
    parser = ReasoningParser(named_format(REASONING_FORMATS, name), inside=inside)
    found = [part for piece in pieces for part in parser.feed(piece)] + parser.finish()
    assert all(text for _, text in found), "an empty piece"
    kinds = [kind for kind, _ in found]
    assert kinds == sorted(kinds, key=[OutputKind.REASONING, OutputKind.CONTENT].index), (
        "reasoning after the answer"
    )
    reasoning, content = (
        "".join(text for kind, text in found if kind is wanted)
        for wanted in (OutputKind.REASONING, OutputKind.CONTENT)
    )
    return reasoning, content


@given(PARSERS, STATES, RAMBLING, cuts(80))
def test_however_a_text_is_split_the_pieces_add_up_to_the_same(
    name: str, inside: bool | None, text: str, at: list[int]
) -> None:
    whole = split(name, [text], inside=inside)
    assert split(name, cut(text, at), inside=inside) == whole
    assert split(name, list(text), inside=inside) == whole


@given(
    WORDS.filter(lambda text: END not in text and not START.startswith(text)),
    WORDS.filter(lambda text: START not in text and not text.startswith("\n")),
    st.sampled_from(["", "\n", "\n\n"]),
    cuts(60),
)
def test_reasoning_and_answer_are_what_the_model_wrote(
    reasoning: str, answer: str, between: str, at: list[int]
) -> None:
    if (reasoning + END).index(END) < len(reasoning) or reasoning.startswith(START):
        return
    text = reasoning + END + between + answer
    assert split("qwen3", cut(START + text, at)) == (reasoning, answer)
    assert split("qwen3", cut(text, at), inside=True) == (reasoning, answer)
    assert split("deepseek_r1", cut(START + text, at)) == (reasoning, answer)
    assert split("deepseek_r1", cut(text, at)) == (reasoning, answer)


@given(PARSERS, STATES, RAMBLING)
def test_only_delimiters_and_empty_lines_after_them_are_dropped(
    name: str, inside: bool | None, text: str
) -> None:
    is_open = name == "deepseek_r1" if inside is None else inside
    begun = text if is_open else text.lstrip()
    has_reasoning = is_open or begun.startswith(START)
    rest = begun.removeprefix(START).replace(END, "", 1) if has_reasoning else text

    reasoning, content = split(name, [text], inside=inside)

    assert (reasoning + content).replace("\n", "") == rest.replace("\n", "")


@pytest.mark.parametrize(
    ("name", "inside", "text", "reasoning", "content"),
    [
        ("qwen3", None, "", "", ""),
        ("qwen3", None, "Hello", "", "Hello"),
        ("qwen3", None, "\n Hello", "", "\n Hello"),
        ("qwen3", None, "<think>\nhm\n</think>\n\nHello", "\nhm\n", "Hello"),
        ("qwen3", None, "\n<think>hm</think>Hello", "hm", "Hello"),
        ("qwen3", None, "<think>\n\n</think>\n\nHello", "\n\n", "Hello"),
        ("qwen3", None, "<think></think>Hello", "", "Hello"),
        ("qwen3", None, "<think>hm", "hm", ""),
        ("qwen3", None, "<think>hm</thi", "hm</thi", ""),
        ("qwen3", None, "<thi", "", "<thi"),
        ("qwen3", None, "<thinking>", "", "<thinking>"),
        ("qwen3", None, "<think>a</think>\n\n  b\n", "a", "  b\n"),
        ("qwen3", None, "<think>a</think>\n\n", "a", ""),
        # Only the beginning of an output can be reasoning: a later delimiter is content.
        ("qwen3", None, "Say <think>a</think>.", "", "Say <think>a</think>."),
        ("qwen3", True, "hm</think>\n\nHello", "hm", "Hello"),
        ("qwen3", True, "<think>hm</think>Hello", "hm", "Hello"),
        ("qwen3", True, "hm <think> hm</think>Hello", "hm <think> hm", "Hello"),
        ("qwen3", True, "hm", "hm", ""),
        ("qwen3", True, "<th", "<th", ""),
        ("qwen3", True, "</think>Hello", "", "Hello"),
        ("qwen3", False, "Hello", "", "Hello"),
        ("deepseek_r1", None, "hm</think>\nHello", "hm", "Hello"),
        ("deepseek_r1", None, "<think>\nhm</think>\nHello", "\nhm", "Hello"),
        ("deepseek_r1", None, "hm", "hm", ""),
        ("deepseek_r1", True, "hm</think>Hello", "hm", "Hello"),
        ("deepseek_r1", False, "Hello", "", "Hello"),
    ],
)
def test_examples(name: str, inside: bool | None, text: str, reasoning: str, content: str) -> None:
    for pieces in splits_of(text):
        assert split(name, pieces, inside=inside) == (reasoning, content), pieces


def test_a_false_start_of_a_delimiter_is_reported_as_soon_as_possible() -> None:
    parser = ReasoningParser(named_format(REASONING_FORMATS, "qwen3"), inside=None)
    assert parser.feed("<thi") == []
    assert parser.feed("nk>a </") == [(OutputKind.REASONING, "a ")]
    assert parser.feed("b") == [(OutputKind.REASONING, "</b")]
    assert parser.feed("</think>") == []
    assert parser.feed("\n\n") == []
    assert parser.feed("Hello <think") == [(OutputKind.CONTENT, "Hello <think")]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LookupError, match="deepseek_r1, qwen3"):
        named_format(REASONING_FORMATS, "nonsense")


def test_a_template_without_reasoning_has_no_format() -> None:
    assert detect_format(REASONING_FORMATS, ["{{ messages }}"]) is None


def test_a_format_with_its_own_delimiters_needs_only_its_description() -> None:
    form = ReasoningFormat(
        names=("scratch",), matches_template=lambda template: "[/R]" in template, start="[R]", end="[/R]"
    )
    parser = ReasoningParser(form, inside=None)
    found = [part for piece in cut("[R]hm[/R]\nHello", [2, 5, 7]) for part in parser.feed(piece)]
    assert detect_format([*REASONING_FORMATS, form], ["{{ '[R][/R]' }}"]) is form
    assert "".join(text for kind, text in found if kind is OutputKind.REASONING) == "hm"
    assert "".join(text for kind, text in found if kind is OutputKind.CONTENT) == "Hello"
