"""Content parts that are not text: images, another provider's reasoning and calls."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import InvalidRequest
from engine.server.openai.responses.bodies import ResponsesBody
from engine.server.openai.responses.items import MessageItem, TextContent
from engine.server.protocol.body_reader import check
from engine.server.protocol.chat_body import ChatBody
from engine.server.protocol.provider_parts import mark_unsupported_parts
from engine.server.protocol.unknown_fields import collect_ignored

USER: dict[str, Any] = {"role": "user", "content": "And now?"}
HEARD: dict[str, Any] = {"role": "assistant", "content": "A cat."}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
MARK = "[An image was here, which this model can't read.]"
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def messages(*given: Any) -> list[dict[str, Any]]:
    chat = check({"messages": list(given)}, ChatBody)
    return [one.model_dump(exclude_none=True) for one in chat.messages]


def assistant(*parts: Any, **fields: Any) -> dict[str, Any]:
    _, read, _ = messages(USER, {"role": "assistant", "content": list(parts), **fields}, USER)
    return read


@pytest.mark.parametrize(
    ("part", "mark"),
    [
        (IMAGE, MARK),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "A recording"),
        ({"type": "video_url", "video_url": {"url": "u"}}, "A video"),
        ({"type": "file", "file": {"file_id": "f"}}, "A file"),
    ],
)
def test_unreadable_parts_in_the_history_become_placeholders(part: dict[str, Any], mark: str) -> None:
    ignored = collect_ignored(refuses_unknown=True)
    question = {"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}
    read, *_ = messages(question, HEARD, USER)
    assert mark in read["content"][0]["text"]
    assert read["content"][1] == {"type": "text", "text": "What is it?"}
    assert part["type"] in (ignored.header or "")


def test_images_of_tools_become_placeholders() -> None:
    call_turn = {"role": "assistant", "tool_calls": [CALL]}
    result_turn = {"role": "tool", "tool_call_id": "c", "content": [IMAGE]}
    image_turn = {"role": "user", "content": [IMAGE]}  # clients put there what a result cannot contain
    read = messages(USER, call_turn, result_turn, image_turn)
    assert [one["content"][0]["text"] for one in read[2:]] == [MARK, MARK]


@pytest.mark.parametrize("before", [[], [USER, HEARD]])
def test_unreadable_parts_in_the_question_are_refused(before: list[Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        messages(*before, {"role": "user", "content": [IMAGE]}, USER)
    assert refused.value.param == f"messages[{len(before)}].content[0].type"


@pytest.mark.parametrize("kind", ["input_text", "output_text", "text"])
def test_text_parts_of_all_types_are_read(kind: str) -> None:
    part = {"type": kind, "text": "Hi", "annotations": []}
    assert messages({"role": "user", "content": [part]})[0]["content"] == [{"type": "text", "text": "Hi"}]


@pytest.mark.parametrize(
    ("part", "reasoning"),
    [
        ({"type": "thinking", "thinking": "Hm.", "signature": "s"}, "Hm."),
        ({"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}], "closed": True}, "Hm."),
        ({"type": "reasoning", "text": "Hm."}, "Hm."),
        ({"type": "reasoning", "reasoning": "Hm."}, "Hm."),
        ({"type": "reasoning", "summary": []}, None),
        ({"type": "redacted_thinking", "data": "x"}, None),
    ],
)
def test_reasoning_parts_become_reasoning(part: dict[str, Any], reasoning: str | None) -> None:
    text = {"type": "text", "text": "Cold."}
    read = assistant(part, text)
    assert read["content"] == [text]
    assert read.get("reasoning_content") == reasoning
    assert assistant(part, reasoning_content="Mine.")["reasoning_content"] == "Mine."


def test_call_parts_become_calls() -> None:
    part = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    assert assistant(part)["tool_calls"] == [CALL]
    assert assistant(part, tool_calls=[CALL])["tool_calls"] == [CALL]  # LangChain sends them twice


CARD = {"type": "card", "id": "x", "title": "Oslo", "body": {"text": "cold"}}
CARD_WORDS = {"type": "text", "text": "title: Oslo\ncold"}
EMPTY = {"type": "text", "text": ""}
TOOL_RESULT = {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "cold"}]}


def test_a_part_of_unknown_type_in_the_history_becomes_text() -> None:
    ignored = collect_ignored(refuses_unknown=True)
    user = {"role": "user", "content": [CARD]}
    read = messages(user, {"role": "assistant", "content": [CARD]}, USER)
    assert [one["content"] for one in read[:2]] == [[CARD_WORDS], [CARD_WORDS]]
    assert ignored.header == '299 berth "ignored: content[type=card] (unknown type: only its text is read)"'
    assert messages(USER, {"role": "tool", "content": [CARD]})[1]["content"] == [CARD_WORDS]
    with pytest.raises(InvalidRequest) as refused:
        messages(USER, HEARD, user)
    assert refused.value.param == "messages[2].content[0].type"


def test_tool_results_in_a_user_turn_are_read() -> None:
    called = {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]}
    *_, read = messages(USER, called, {"role": "user", "content": [TOOL_RESULT]})
    assert read["content"] == [{"type": "text", "text": "cold"}]


@pytest.mark.parametrize(
    ("turn", "read"),
    [
        ({"role": "assistant", "content": None}, {}),
        ({"role": "assistant"}, {}),
        ({"role": "assistant", "content": [{"type": "text", "text": None}]}, {"content": [EMPTY]}),
        ({"role": "assistant", "content": None, "tool_calls": None, "name": None, "reasoning": None}, {}),
        ({"role": "assistant", "reasoning": [{"type": "text", "text": "Hm."}]}, {"reasoning": "Hm."}),
        ({"role": "assistant", "reasoning_content": {"text": "Hm."}}, {"reasoning_content": "Hm."}),
        ({"role": "assistant", "reasoning": []}, {}),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "type": "builtin_function", "index": None}]},
            {"tool_calls": [CALL]},
        ),
        ({"role": "assistant", "status": "x", "phase": "y", "id": 5}, {}),
        ({"role": "tool", "content": None, "tool_call_id": None}, {}),
    ],
)  # fmt: skip
def test_a_history_may_have_null_or_empty_text(turn: Any, read: dict[str, Any]) -> None:
    assert messages(USER, turn, USER)[1] == {"role": turn["role"], **read}


def first_text(items: list[Any], index: int) -> str:
    """The first text of an input's item, a message."""
    read = check({"input": items}, ResponsesBody).input
    assert isinstance(read, list)
    message = read[index]
    assert isinstance(message, MessageItem) and isinstance(message.content, list)
    part = message.content[0]
    assert isinstance(part, TextContent)
    return part.text


def test_items_are_handled_like_messages() -> None:
    image = {"type": "input_image", "image_url": "data:,", "detail": "auto"}
    question = {"role": "user", "content": [image, {"type": "input_text", "text": "What is it?"}]}
    assert first_text([question, HEARD, USER], 0) == MARK
    output = {"type": "function_call_output", "call_id": "c", "output": "ok"}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    assert first_text([USER, call, output, question], 3) == MARK
    with pytest.raises(InvalidRequest) as refused:
        check({"input": [USER, HEARD, question]}, ResponsesBody)
    assert refused.value.param == "input[2].content[0].type"


@pytest.mark.parametrize("turns", [None, "Hi", [], [5, None, "x", {"role": 5}, {"content": [1, None]}]])
def test_values_that_are_not_conversations_are_unchanged(turns: Any) -> None:
    assert mark_unsupported_parts(turns) == turns
