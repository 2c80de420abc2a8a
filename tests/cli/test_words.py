"""An answer at a terminal: words and graphemes stay whole however chunks split them; and typed commands."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from cli.answers import _Halves
from cli.conversation import Conversation, Verb, command_in
from cli.errors import CliError
from cli.wrap import WordWrap

TEXT = (
    "Berth gives every LLM engine a berth: a port, a supervisor and one front door.\n\n"
    "    an indented line that is long enough to be broken somewhere\n"
    "See https://example.org/a/very/long/address/that/fits/on/no/line/at/all/index.html for more."
)


def wrapped(pieces: list[str], columns: int) -> str:
    out = io.StringIO()
    wrap = WordWrap(out, lambda: columns)
    for piece in pieces:
        wrap.write(piece)
    wrap.flush()
    return out.getvalue()


@given(cuts=st.lists(st.integers(0, len(TEXT)), max_size=40), columns=st.integers(20, 90))
def test_lines_break_between_words_however_the_text_is_split(cuts: list[int], columns: int) -> None:
    marks = sorted({0, *cuts, len(TEXT)})
    pieces = [TEXT[start:end] for start, end in itertools.pairwise(marks)]
    text = wrapped(pieces, columns)
    assert text.split() == TEXT.split()  # every word is whole
    assert all(len(line) <= columns or "https" in line for line in text.splitlines())
    assert text == wrapped([TEXT], columns)


def test_a_text_that_fits_is_unchanged() -> None:
    text = "  a\tb\n\nc  d \n"
    assert wrapped(list(text), 40) == text


@pytest.mark.parametrize("text", ["你好" * 40, "日本語のテキスト" * 20])
def test_scripts_without_spaces_are_broken_between_letters(text: str) -> None:
    lines = wrapped(list(text), 30).splitlines()
    assert "".join(lines) == text
    assert all(cell_len(line) <= 30 for line in lines)


def test_a_grapheme_of_several_characters_is_not_split() -> None:
    family, thumb = "👨\u200d👩\u200d👧", "👍\U0001f3fd"
    text = wrapped(list((family + thumb) * 20), 31)
    assert text.replace("\n", "") == (family + thumb) * 20
    assert all(line[0] not in "\u200d\U0001f3fd" and line[-1] != "\u200d" for line in text.splitlines())


def test_halves_of_a_character_are_joined_across_chunks() -> None:
    halves = _Halves()
    pieces = [halves.joined(text) for text in ("a\ud83d", "\ude00b", "\ude00", "c\ud83d")]
    assert pieces == ["a", "😀b", "\ufffd", "c"]
    assert halves.joined("", is_last=True) == "\ufffd"


def executed(conversation: Conversation, line: str) -> str:
    command = command_in(line)
    assert command is not None
    return conversation.execute(*command)


@pytest.mark.parametrize("line", ["/bye", "/exit", "/quit"])
def test_every_way_to_leave_a_chat_works(line: str) -> None:
    assert command_in(line) == (Verb.EXIT, "")


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("/set temperature 0.2", {"temperature": 0.2}),
        ("/set parameter temperature 0.2", {"temperature": 0.2}),
        ("/set parameter num_predict 7", {"max_tokens": 7}),
        ("/set stop END", {"stop": "END"}),
        ("/set format json", {"response_format": {"type": "json_object"}}),
        ("/set nothink", {"chat_template_kwargs": {"enable_thinking": False}}),
    ],
)
def test_set_fields_are_sent(line: str, fields: dict[str, Any]) -> None:
    conversation = Conversation("m")
    executed(conversation, line)
    assert conversation.fields == fields
    assert next(iter(fields)) in executed(conversation, "/show parameters")


def test_a_chats_switches_work() -> None:
    conversation = Conversation("m")
    executed(conversation, '/set system "Be kind"')
    assert (conversation.system, executed(conversation, "/show system")) == ("Be kind", "Be kind")
    executed(conversation, "/set verbose")
    assert conversation.body(stream=True)["stream_options"] == {"include_usage": True}
    executed(conversation, "/set quiet")
    assert "stream_options" not in conversation.body(stream=True)
    executed(conversation, "/set nowordwrap")
    executed(conversation, "/set nohistory")
    assert (conversation.word_wrap, conversation.history) == (False, False)
    conversation.ask("one")
    conversation.answered("two")
    assert conversation.messages == []
    executed(conversation, "/load other")
    assert conversation.model == "other"
    assert executed(conversation, "/?") == executed(conversation, "/help")


@pytest.mark.parametrize(
    "line", ["/set model x", "/set nonsense", "/nonsense", "/show license", "/load", "/set num_ctx 9"]
)
def test_invalid_commands_are_refused(line: str) -> None:
    with pytest.raises(CliError):
        executed(Conversation("m"), line)
