"""How histories of Anthropic's clients, from any provider, are shown to the model."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import InvalidRequest
from engine.server.messages.bodies import MessagesBody
from engine.server.messages.history import chat_messages
from engine.server.messages.translate import ReasoningSupport, to_chat
from engine.server.protocol.body_reader import check

HI: Any = {"role": "user", "content": "Hi"}
SO: Any = {"type": "text", "text": "so"}
IMAGE: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
PDF: Any = {
    "type": "document",
    "title": "Plan",
    "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"},
}
USE: Any = {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": 1}}
CALL: Any = {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
NO_IMAGE = "[An image was here, which this model can't read.]"


def body_of(*messages: Any, **fields: Any) -> MessagesBody:
    return check({"max_tokens": 5, "messages": list(messages), **fields}, MessagesBody)


def shown(*messages: Any, **fields: Any) -> list[dict[str, Any]]:
    return chat_messages(body_of(*messages, **fields))


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def assistant(*content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(content)}


def system(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "system", "content": content, **fields}


def result(content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "t1", "content": content, **fields}


def result_text(content: Any, **fields: Any) -> str:
    [_, _, messages] = shown(HI, assistant(USE), user(result(content, **fields)))
    assert (messages["role"], messages["tool_call_id"]) == ("tool", "t1")
    return str(messages["content"])


def assistant_text(*content: Any) -> Any:
    [_, turn, _] = shown(HI, assistant(*content), HI)
    return turn["content"]


# System turns


def test_a_system_turn_keeps_its_position() -> None:
    turns = [HI, {"role": "assistant", "content": "a"}, system("now"), HI, system([SO, SO])]
    messages = shown(*turns, system="first")
    assert [(one["role"], one["content"]) for one in messages] == [
        ("system", "first"),
        ("user", "Hi"),
        ("assistant", "a"),
        ("system", "now"),
        ("user", "Hi"),
        ("system", "so\nso"),
    ]


def test_consecutive_system_turns_are_merged() -> None:
    assert shown(system("a"), system([SO]), HI, system="first")[0] == {
        "role": "system",
        "content": "first\na\nso",
    }


def test_a_system_turn_may_be_cleared_by_the_next_question() -> None:
    brief = system("now", clear_at="next_user_message")
    assert shown(HI, brief) == [HI, system("now")]
    assert shown(HI, brief, HI) == [user_text("Hi\nHi")]
    assert shown(HI, system("now", clear_at="never"), HI) == [HI, system("now"), HI]


def user_text(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    "content",
    [
        "x-anthropic-billing-header: cc_version=2.1.37.0d9; cch=fa690;\nBe brief.",
        [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.37.0d9; cch=fa690;"},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "scope": "global"}},
        ],
    ],
)
def test_a_billing_header_is_removed(content: Any) -> None:
    """It differs in every request, which would defeat the prefix cache."""
    assert shown(HI, system=content) == [system("Be brief."), HI]
    assert shown(system(content), HI) == [system("Be brief."), HI]


# Turns


def test_consecutive_messages_of_one_role_are_merged() -> None:
    messages = shown(
        HI, user(SO), {"role": "assistant", "content": "a"}, assistant(SO, USE), user(result("5")), HI
    )
    assert messages == [
        user_text("Hi\nso"),
        {"role": "assistant", "content": "a\nso", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "t1", "content": "5"},
        HI,
    ]


def test_tool_results_precede_user_text_of_the_same_message() -> None:
    messages = shown(HI, assistant(USE), user(SO, result("5")))
    assert [one["role"] for one in messages] == ["user", "assistant", "tool", "user"]


@pytest.mark.parametrize("empty", [[], "", [{"type": "text", "text": ""}]])
def test_an_empty_turn_is_accepted(empty: Any) -> None:
    assert shown({"role": "user", "content": empty}) == [user_text("")]
    assert shown(HI, {"role": "assistant", "content": empty}, HI) == [user_text("Hi\nHi")]


def test_empty_texts_add_nothing() -> None:
    nothing = {"type": "text", "text": ""}
    assert shown(user(nothing, SO, nothing)) == [user_text("so")]
    assert assistant_text(nothing, SO, {"type": "text", "text": " \n"}) == "so"


@pytest.mark.parametrize("last", ["It is ", [{"type": "text", "text": "It is "}]])
def test_a_started_answer_is_continued(last: Any) -> None:
    chat = to_chat(body_of(HI, {"role": "assistant", "content": last}), ReasoningSupport())
    assert chat.continue_final_message
    assert not chat.add_generation_prompt


@pytest.mark.parametrize(
    "last", [assistant(USE), assistant(), assistant({"type": "thinking", "thinking": "x"})]
)
def test_a_last_message_that_cannot_be_continued_is_answered(last: Any) -> None:
    chat = to_chat(body_of(HI, last), ReasoningSupport())
    assert chat.add_generation_prompt


@pytest.mark.parametrize("block", [USE, result("5"), {"type": "thinking", "thinking": "x"}])
def test_a_system_message_of_other_blocks_is_refused(block: Any) -> None:
    with pytest.raises(InvalidRequest) as error:
        shown(HI, system([SO, block]))
    assert error.value.param == "messages[1].content[1].type"
    assert f"can't contain blocks of type {block['type']}" in str(error.value)


def test_messages_without_text_are_refused() -> None:
    with pytest.raises(InvalidRequest) as error:
        shown(assistant({"type": "redacted_thinking", "data": "x"}))
    assert error.value.param == "messages"


# Assistant messages of other providers


@pytest.mark.parametrize("signature", [None, "", "EqoBCkgI", "a foreign one", 5])
def test_reasoning_is_shown_whatever_its_signature(signature: Any) -> None:
    thinking_block = {"type": "thinking", "thinking": "Hm.", "signature": signature}
    assert shown(HI, assistant(thinking_block, SO))[1] == {
        "role": "assistant",
        "reasoning_content": "Hm.",
        "content": "so",
    }


@pytest.mark.parametrize(
    "block",
    [
        {"type": "thinking", "thinking": "", "signature": "x"},
        {"type": "thinking", "thinking": None, "signature": "x"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "fallback", "from": {"model": "a"}, "to": {"model": "b"}},
        {"type": "mcp_tool_listing", "mcp_server_name": "m", "tools": []},
        {"type": "compaction", "content": None},
    ],
)
def test_blocks_without_text_are_skipped(block: Any) -> None:
    assert shown(HI, assistant(block, SO))[1] == {"role": "assistant", "content": "so"}


def test_a_hosted_search_becomes_a_call_and_its_result() -> None:
    use = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "Berth"}}
    found = {
        "type": "web_search_result",
        "title": "A berth",
        "url": "http://a.b",
        "encrypted_content": "x" * 50,
        "page_age": "2 days",
    }
    messages = shown(
        HI,
        assistant(SO, use, {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [found]}, SO),
    )
    function = {"name": "web_search", "arguments": '{"query": "Berth"}'}
    assert messages[1:] == [
        {
            "role": "assistant",
            "content": "so",
            "tool_calls": [{"id": "s1", "type": "function", "function": function}],
        },
        {
            "role": "tool",
            "tool_call_id": "s1",
            "content": "title: A berth\nurl: http://a.b\npage_age: 2 days",
        },
        {"role": "assistant", "content": "so"},
    ]


DOCUMENT: Any = {
    "type": "document",
    "source": {"type": "text", "media_type": "text/plain", "data": "Words"},
    "title": "T",
}


@pytest.mark.parametrize(
    ("kind", "content", "text"),
    [
        (
            "web_search_tool_result",
            {"type": "web_search_tool_result_error", "error_code": "unavailable"},
            "error_code: unavailable",
        ),
        (
            "web_fetch_tool_result",
            {"type": "web_fetch_result", "url": "http://a.b", "content": DOCUMENT},
            "url: http://a.b\nWords\ntitle: T",
        ),
        (
            "code_execution_tool_result",
            {
                "type": "code_execution_result",
                "stdout": "5\n",
                "stderr": "",
                "return_code": 0,
                "content": [{"type": "code_execution_output", "file_id": "f"}],
            },
            "stdout: 5\n\nreturn_code: 0",
        ),
        (
            "bash_code_execution_tool_result",
            {
                "type": "bash_code_execution_result",
                "stdout": "",
                "stderr": "no",
                "return_code": 1,
                "content": [],
            },
            "stderr: no\nreturn_code: 1",
        ),
        (
            "text_editor_code_execution_tool_result",
            {"type": "text_editor_code_execution_str_replace_result", "lines": ["-a", "+b"]},
            "-a\n+b",
        ),
        ("mcp_tool_result", [{"type": "text", "text": "5"}], "5"),
        ("mcp_tool_result", "5", "5"),
        ("advisor_tool_result", {"type": "advisor_result", "text": "Do"}, "Do"),
        ("advisor_tool_result", {"type": "advisor_redacted_result", "encrypted_content": "x"}, ""),
        (
            "tool_search_tool_result",
            {
                "type": "tool_search_tool_search_result",
                "tool_references": [{"type": "tool_reference", "tool_name": "look"}],
            },
            "tool_name: look",
        ),
        ("some_later_tool_result", {"type": "some_later_result", "text": "5"}, "5"),
    ],
)
def test_results_of_hosted_tools_are_read(kind: str, content: Any, text: str) -> None:
    block = {"type": kind, "tool_use_id": "s1", "content": content}
    messages = shown(HI, assistant(SO, block))
    assert messages[-1] == {"role": "tool", "tool_call_id": "s1", "content": text}


def test_cited_pieces_are_joined_without_separators() -> None:
    cited = {"type": "text", "text": "12 degrees", "citations": [{"type": "char_location"}]}
    after = {"type": "text", "text": " today.", "citations": []}
    assert assistant_text({"type": "text", "text": "It is "}, cited, after) == "It is 12 degrees today."


def test_a_summary_replaces_everything_before_it() -> None:
    compacted = assistant({"type": "compaction", "content": "They met.", "encrypted_content": "x"}, SO)
    assert shown(HI, assistant(SO), HI, compacted, HI, system="s") == [
        system("s"),
        user_text("Summary of the conversation so far:\nThey met."),
        {"role": "assistant", "content": "so"},
        HI,
    ]


# Tool results


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("", ""),
        ([], ""),
        ("5", "5"),
        ([SO, {"type": "text", "text": ""}, SO], "so\nso"),
        ([IMAGE], NO_IMAGE),
        ([SO, PDF], "so\n[A document (Plan) was here, which this model can't read.]"),
        ([DOCUMENT], "Words\ntitle: T"),
        (
            [{"type": "search_result", "source": "http://a.b", "title": "T", "content": [SO]}],
            "source: http://a.b\ntitle: T\nso",
        ),
        ([{"type": "tool_reference", "tool_name": "look"}], "tool_name: look"),
        (
            [{"type": "browser_state", "tabs": [{"tab_id": "1", "title": "T", "url": "u", "active": True}]}],
            "tab_id: 1\ntitle: T\nurl: u\nactive: true",
        ),
    ],
)
def test_a_result_is_shown_as_text(content: Any, text: str) -> None:
    assert result_text(content) == text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("no such file", "Error: no such file"),
        ("<tool_use_error>No such file</tool_use_error>", "<tool_use_error>No such file</tool_use_error>"),
        (None, "Error"),
    ],
)
def test_a_failed_call_is_shown_as_an_error(content: Any, text: str) -> None:
    assert result_text(content, is_error=True) == text
    assert not result_text(content, is_error=False).startswith("Error")


def test_a_result_of_an_unknown_call_is_shown() -> None:
    assert shown(HI, user(result("5")))[-1]["content"] == "5"


# Images and documents


@pytest.mark.parametrize("block", [IMAGE, PDF, {"type": "document", "source": {"type": "url", "url": "u"}}])
def test_an_image_in_the_question_is_refused_and_one_in_the_history_replaced(block: Any) -> None:
    with pytest.raises(InvalidRequest) as error:
        shown(HI, assistant(SO), user(SO, block))
    assert error.value.param == "messages[2].content[1].type"
    messages = shown(user(SO, block), assistant(SO), HI)
    assert messages[0]["content"].startswith("so\n[A")
    assert "can't read" in messages[0]["content"]


def test_an_image_next_to_tool_results_is_replaced() -> None:
    """The client's tools have added it, and would do so again."""
    messages = shown(HI, assistant(USE), user(result([SO])), user(PDF))
    assert "can't read" in messages[-1]["content"]


def test_an_unknown_block_in_the_question_is_refused() -> None:
    block = {"type": "hologram", "text": "see"}
    with pytest.raises(InvalidRequest) as error:
        shown(user(block))
    assert error.value.param == "messages[0].content[0].type"
    assert assistant_text(block) == "see"


# Formats of other SDKs


def test_a_calls_input_may_be_json_text() -> None:
    for given in ('{"at": 1}', {"at": 1}):
        assert shown(HI, assistant({**USE, "input": given}), user(result("x")))[1]["tool_calls"] == [CALL]
    empty_inputs: tuple[object, ...] = ("", None, {})
    for empty in empty_inputs:
        [_, call, _] = shown(HI, assistant({**USE, "input": empty}), user(result("x")))
        assert call["tool_calls"][0]["function"]["arguments"] == "{}"
    with pytest.raises(InvalidRequest, match=r"messages\[1\]\.content\[0\]\.input"):
        shown(HI, assistant({**USE, "input": "at 1"}), HI)


def test_developer_is_the_system_role() -> None:
    assert shown({"role": "developer", "content": "now"}, HI)[0] == system("now")


def test_an_empty_assistant_message_is_skipped() -> None:
    assert shown(HI, {"role": "assistant", "content": None}, HI) == [user_text("Hi\nHi")]
