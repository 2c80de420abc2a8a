"""Items of any provider are converted to messages. Without a server."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from engine.errors import InvalidRequest
from engine.server.generation.response_store import ResponseStore, StoredResponse, TenantResponses
from engine.server.openai.responses.bodies import RULES, InputTokensBody
from engine.server.openai.responses.items import read_items
from engine.server.openai.responses.translate import ConversationRequest, fitting_cut
from engine.server.protocol.body_reader import check
from engine.server.protocol.unknown_fields import collect_ignored

HI = {"role": "user", "content": "Hi"}


def asked(*items: Any, store: TenantResponses | None = None, **fields: Any) -> ConversationRequest:
    body = check({"input": list(items), **fields}, InputTokensBody, RULES)
    return ConversationRequest(body, store or ResponseStore().of(""))


def said(*items: Any, **fields: Any) -> list[dict[str, Any]]:
    """The chat's messages without empty fields, and with parsed arguments."""
    messages = []
    for message in asked(*items, **fields).chat().messages:
        shown = message.model_dump(exclude_none=True)
        for call in shown.get("tool_calls", []):
            arguments = call["function"]["arguments"]
            call["function"]["arguments"] = (
                json.loads(arguments) if arguments and isinstance(arguments, str) else arguments
            )
        messages.append(shown)
    return messages


def call(name: str, arguments: Any, call_id: str | None = "c1") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    one = {"type": "function", "function": function, **({"id": call_id} if call_id else {})}
    return {"role": "assistant", "tool_calls": [one]}


def result(text: str, call_id: str | None = "c1") -> dict[str, Any]:
    return {"role": "tool", "content": text, **({"tool_call_id": call_id} if call_id else {})}


def said_by(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def reasoning(text: str) -> dict[str, Any]:
    return {"role": "assistant", "reasoning_content": text}


SUMMARY = {"type": "summary_text", "text": "in short"}
IMAGE = {"type": "input_image", "image_url": "d"}
SHELL = {"type": "exec", "command": ["ls"], "env": {}}


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        (
            [
                {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** é"},
                {"type": "custom_tool_call_output", "call_id": "c1", "output": "Done"},
            ],
            [call("apply_patch", {"input": "*** é"}), result("Done")],
        ),
        (
            [
                {
                    "type": "local_shell_call",
                    "id": "l",
                    "call_id": "c1",
                    "status": "completed",
                    "action": SHELL,
                },
                {"type": "local_shell_call_output", "call_id": "c1", "output": '{"output": "a.py"}'},
            ],
            [call("local_shell", SHELL), result('{"output": "a.py"}')],
        ),
        (
            [
                {"type": "shell_call", "call_id": "c1", "action": {"commands": ["ls"]}},
                {
                    "type": "shell_call_output",
                    "call_id": "c1",
                    "output": [{"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}],
                },
            ],
            [
                call("shell", {"commands": ["ls"]}),
                result('{"stdout": "a", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}'),
            ],
        ),
        (
            [
                {
                    "type": "apply_patch_call",
                    "call_id": "c1",
                    "operation": {"type": "delete_file", "path": "a"},
                },
                {"type": "apply_patch_call_output", "call_id": "c1", "status": "failed"},
            ],
            [call("apply_patch", {"type": "delete_file", "path": "a"}), result("failed")],
        ),
        (
            [{"type": "web_search_call", "id": "ws", "status": "completed", "action": {"query": "x"}}],
            [call("web_search", {"query": "x"}, "ws"), result("completed", "ws")],
        ),
        (
            [{"type": "file_search_call", "id": "fs", "queries": ["x"], "results": [{"text": "found"}]}],
            [call("file_search", {"queries": ["x"]}, "fs"), result("found", "fs")],
        ),
        (
            [
                {
                    "type": "code_interpreter_call",
                    "id": "ci",
                    "code": "1+1",
                    "container_id": "c",
                    "outputs": [{"type": "logs", "logs": "2"}, {"type": "image", "url": "u"}],
                }
            ],
            [call("code_interpreter", {"code": "1+1"}, "ci"), result("2\n[image]", "ci")],
        ),
        (
            [{"type": "image_generation_call", "id": "ig", "result": "iVBOR", "revised_prompt": "a cat"}],
            [call("image_generation", {"prompt": "a cat"}, "ig"), result("[image]", "ig")],
        ),
        (
            [
                {"type": "computer_call", "call_id": "c1", "actions": [{"type": "click"}], "id": "x"},
                {"type": "computer_call_output", "call_id": "c1", "output": {"type": "computer_screenshot"}},
            ],
            [call("computer", {"actions": [{"type": "click"}]}), result("[image]")],
        ),
        (
            [
                {"type": "mcp_list_tools", "id": "m", "server_label": "s", "tools": []},
                {"type": "mcp_call", "id": "mc", "server_label": "s", "name": "f", "arguments": '{"a": 1}'}
                | {"output": "42"},
                {
                    "type": "mcp_approval_request",
                    "id": "ar",
                    "name": "g",
                    "arguments": "{}",
                    "server_label": "s",
                },
                {
                    "type": "mcp_approval_response",
                    "approval_request_id": "ar",
                    "approve": False,
                    "reason": "no",
                },
            ],
            [call("f", {"a": 1}, "mc"), result("42", "mc"), call("g", {}, "ar"), result("denied: no", "ar")],
        ),
        (
            [
                {
                    "type": "tool_search_call",
                    "call_id": "c1",
                    "execution": "client",
                    "arguments": {"goal": "x"},
                },
                {
                    "type": "tool_search_output",
                    "call_id": "c1",
                    "tools": [{"type": "function", "name": "f", "parameters": None, "defer_loading": True}],
                },
            ],
            [call("tool_search", {"goal": "x"}), result("Found: f")],
        ),
        (
            [
                {"type": "program", "id": "p", "call_id": "c1", "code": "f()", "fingerprint": "x"},
                {"type": "program_output", "id": "po", "call_id": "c1", "result": "1", "status": "completed"},
            ],
            [call("program", {"code": "f()"}), result("1")],
        ),
        (
            [
                {
                    "type": "function_call",
                    "call_id": "c1",
                    "name": "g",
                    "namespace": "mcp__x",
                    "arguments": "{}",
                },
                {
                    "type": "function_call_output",
                    "call_id": "c1",
                    "output": [{"type": "input_text", "text": "a"}],
                },
            ],
            [call("mcp__x__g", {}), result("a")],
        ),
        (
            [{"type": "later_vendor_call", "id": "lv", "call_id": "c1", "input": {"a": 1}}],
            [call("later_vendor", {"a": 1})],
        ),
    ],
)
def test_another_providers_call_becomes_a_call(items: list[Any], messages: list[Any]) -> None:
    assert said(HI, *items) == [HI, *messages]


@pytest.mark.parametrize(
    ("item", "reasoning"),
    [
        ({"summary": []}, None),
        ({"summary": [], "content": None, "encrypted_content": "gAAAAA"}, None),
        ({"id": "rs_1", "summary": [SUMMARY]}, "in short"),
        ({"summary": [SUMMARY], "content": [{"type": "reasoning_text", "text": "hm"}]}, "hm"),
        ({"content": [{"type": "text", "text": "hm"}], "status": "whatever"}, "hm"),
        ({"summary": None, "id": None}, None),
    ],
)  # fmt: skip
def test_reasoning_with_text_is_read(item: dict[str, Any], reasoning: str | None) -> None:
    messages = said(HI, {"type": "reasoning", **item}, {"role": "assistant", "content": "a"}, HI)
    expected = {
        "role": "assistant",
        "content": "a",
        **({"reasoning_content": reasoning} if reasoning else {}),
    }
    assert messages == [HI, expected, HI]


def test_items_of_one_turn_become_one_message() -> None:
    reasoning = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}], "summary": []}
    calls = [{"type": "function_call", "call_id": f"c{n}", "name": "f", "arguments": "{}"} for n in (1, 2)]
    outputs = [{"type": "function_call_output", "call_id": f"c{n}", "output": str(n)} for n in (1, 2)]
    messages = said(HI, reasoning, {"role": "assistant", "content": "Look:"}, *calls, *outputs, reasoning)
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    turn = messages[1]
    assert (turn["reasoning_content"], turn["content"], len(turn["tool_calls"])) == ("hm", "Look:", 2)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "output_text", "text": "a", "annotations": [{"type": "url_citation"}], "logprobs": None},
        {"type": "input_text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}},
        {"type": "text", "text": "a"},
        {"type": "refusal", "refusal": "a"},
        {"type": "summary_text", "text": "a"},
    ],
)
def test_text_parts_of_all_types_are_text(part: dict[str, Any]) -> None:
    message = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "content": [part],
        "phase": "commentary",
    }
    assert said(HI, {**message, "status": "odd"}) == [HI, {"role": "assistant", "content": "a"}]


def warnings_of(items: Iterable[Any], **fields: Any) -> str:
    ignored = collect_ignored(refuses_unknown=False)
    said(*items, **fields)
    return ignored.header or ""


@pytest.mark.parametrize(
    ("item", "name"),
    [
        ({"type": "compaction", "id": "cmp", "encrypted_content": "gAAA"}, "encrypted_content"),
        ({"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}, "encrypted_content"),
        (
            {
                "type": "function_call_output",
                "call_id": "c",
                "output": [{"type": "input_image", "image_url": "d"}],
            },
            "input[].output",
        ),
        (
            {
                "type": "custom_tool_call_output",
                "call_id": "c",
                "output": [{"type": "input_file", "file_id": "f"}],
            },
            "input[].output",
        ),
    ],
)
def test_unreadable_content_is_named_in_a_warning(item: dict[str, Any], name: str) -> None:
    assert name in warnings_of([HI, item])


def test_a_foreign_item_keeps_its_fields_beside_unknown_ones() -> None:
    """Unknown fields elsewhere in the same body are dropped."""
    item = {"type": "web_search_call", "id": "ws", "status": "x", "action": {"query": "q"}}
    ignored = collect_ignored(refuses_unknown=False)
    messages = said({**HI, "mood": 1}, item)
    assert messages[1:] == [call("web_search", {"query": "q"}, "ws"), result("x", "ws")]
    assert ignored.header == '299 berth "ignored: input[].mood (unknown field)"'


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([HI, {"role": "user", "content": [IMAGE]}], "input[1].content[0].type"),
        ([HI, {"role": "user", "content": [{"type": "input_file"}]}], "input[1].content[0].type"),
        ([HI, {"type": "compaction_trigger"}], "input[1].type"),
        ([HI, {"type": "configuration_update", "reasoning": {"effort": "low"}}], "input[1].type"),
        ([HI, {"type": "reasoning", "summary": [{"type": "summary_text"}]}], "input[1].summary[0].text"),
        ([HI, {"type": "reasoning", "summary": 5}], "input[1].summary"),
        ([HI, HI, {"type": "function_call", "call_id": "c", "arguments": "{}"}], "input[2].name"),
        ([HI, {"type": 5}], "input[1].type"),
        ([HI, {"type": "input_text", "text": "a"}], "input[1].type"),
        ([HI, {"role": "user", "content": [{"type": "hologram", "text": "a"}]}], "input[1].content[0].type"),
        ([HI, {"role": "wizard", "content": "a"}], "input[1].role"),
        ([HI, {"role": "user"}], "input[1].content"),
        (
            [{"type": "additional_tools", "tools": [{"type": "function"}]}, HI],
            "input[0].tools[0].name",
        ),
    ],
)  # fmt: skip
def test_an_invalid_item_is_named_by_its_path(items: list[Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked(*items).chat()
    assert caught.value.param == param
    assert caught.value.message.startswith(
        (f"{param}: Input should", f"{param}: Input tag", f"{param!r} is req")
    )


ASSISTANT = {"role": "assistant", "content": "a"}
TEXT = {"type": "output_text", "text": "a", "annotations": None, "logprobs": None}


@pytest.mark.parametrize(
    ("item", "messages"),
    [
        ({"type": "role_play", "id": "x", "text": "a", "status": "done"}, [said_by("a")]),
        ({"type": "notice", "content": [{"type": "card", "n": 1}]}, [said_by("n: 1")]),
        ({"type": "notice", "encrypted_content": "x"}, []),
        ({"type": "agent_message", **ASSISTANT}, [ASSISTANT]),
        ({"role": "assistant", "content": None}, [said_by("")]),
        ({"role": "assistant", "type": "message"}, [said_by("")]),
        ({"role": "assistant", "content": [{"type": "hologram", "n": 1}, TEXT]}, [said_by("n: 1\na")]),
        ({"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}, TEXT]}, [ASSISTANT]),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": None}]}, [said_by("")]),
        ({"role": "assistant", "content": [{"type": "output_text", "text": None}]}, [said_by("")]),
        ({"role": "assistant", "content": "a", "id": 5, "status": {}, "phase": ["x"]}, [ASSISTANT]),
        ({"type": "reasoning", "summary": "a"}, [reasoning("a")]),
        ({"type": "reasoning", "summary": ["a", {"type": "poem", "text": "b"}]}, [reasoning("a\n\nb")]),
        ({"type": "reasoning", "summary": None, "content": "a"}, [reasoning("a")]),
        ({"type": "reasoning", "encrypted_content": {"a": 1}, "summary": {"text": "a"}}, [reasoning("a")]),
        ({"type": "reasoning", "id": None, "status": None, "phase": None, "encrypted_content": None}, []),
        ({"type": "function_call", "call_id": "c1", "name": "f", "arguments": None}, [call("f", "")]),
        ({"type": "function_call", "id": "c1", "name": "f", "phase": "x", "status": None}, [call("f", "")]),
        ({"type": "custom_tool_call", "id": "c1", "name": "f", "input": None}, [call("f", {"input": ""})]),
        ({"type": "function_call_output", "call_id": "c1", "output": None}, [result("")]),
        ({"type": "function_call_output", "call_id": "c1", "status": 1}, [result("")]),
        ({"type": "function_call_output", "call_id": "c1", "output": ["a", 1, TEXT]}, [result("a\n1\na")]),
        ({"type": "function_call_output", "call_id": "c1", "output": [{"text": "a"}]}, [result("a")]),
        ({"type": "function_call_output", "call_id": "c1", "output": 1.5}, [result("1.5")]),
        ({"type": "custom_tool_call_output", "call_id": "c1", "output": True}, [result("true")]),
    ],
)  # fmt: skip
def test_the_text_of_any_history_is_read(item: Any, messages: list[Any]) -> None:
    assert said(HI, item, HI) == [HI, *messages, HI]


def test_an_item_of_unknown_type_is_named_in_a_warning() -> None:
    ignored = collect_ignored(refuses_unknown=True)
    said(HI, {"type": "role_play", "text": "a"})
    assert (
        ignored.header == '299 berth "ignored: input[type=role_play] (unknown type: only its text is read)"'
    )


def stored(*items: dict[str, Any], name: str = "resp_1") -> StoredResponse:
    return StoredResponse({"id": name}, read_items(list(items)), len(items))


def test_a_reference_is_replaced_by_its_stored_item() -> None:
    store = ResponseStore().of("")
    store.put(stored({"id": "msg_1", "role": "assistant", "content": "a"}))
    for reference in (
        {"type": "item_reference", "id": "msg_1"},
        {"id": "msg_1"},
        {"type": None, "id": "msg_1"},
    ):
        assert said(HI, reference, store=store) == [HI, {"role": "assistant", "content": "a"}]
    store.delete("resp_1")
    with pytest.raises(InvalidRequest) as caught:
        asked(HI, {"id": "msg_1"}, store=store)
    assert (caught.value.code, caught.value.param) == ("item_not_found", "input[1].id")


def test_tools_added_by_items_are_offered_from_then_on() -> None:
    """Codex sends all its tools this way, and a tool search adds more; the later definition applies."""
    tools = [
        {
            "type": "namespace",
            "name": "functions",
            "tools": [{"type": "custom", "name": "exec"}, {"type": "function", "name": "wait"}],
        },
        {"type": "namespace", "name": "mcp__x__", "tools": [{"type": "function", "name": "wait"}]},
    ]
    found = [{"type": "function", "name": "wait", "description": "newer"}, {"type": "web_search"}]
    request = asked(
        {"type": "additional_tools", "role": "developer", "tools": tools},
        HI,
        {"type": "tool_search_output", "call_id": "c", "tools": found},
    )
    functions = [tool["function"] for tool in request.toolbox.functions]
    assert [function["name"] for function in functions] == ["exec", "wait", "mcp__x__wait"]
    assert functions[1]["description"] == "newer"


def test_a_continued_conversation_has_the_stored_items() -> None:
    store = ResponseStore().of("")
    tools = [{"type": "function", "name": "f"}]
    store.put(stored({"id": "at", "type": "additional_tools", "tools": tools}, {"id": "m", **HI}))
    body = check({"input": "And?", "previous_response_id": "resp_1"}, InputTokensBody, RULES)
    request = ConversationRequest(body, store)
    assert [message.text for message in request.chat().messages] == ["Hi", "And?"]
    assert len(request.toolbox) == 1


def test_the_oldest_turns_are_dropped_and_instructions_kept() -> None:
    system = {"role": "developer", "content": "Be brief."}
    output = {"type": "function_call_output", "call_id": "c", "output": "x"}
    request = asked(HI, system, output, HI, HI)
    assert request.turns == [3, 4]
    messages = request.chat(num_dropped=3).messages
    assert [message.role for message in messages] == ["developer", "user", "user"]


@pytest.mark.parametrize("least", range(6))
def test_the_fewest_possible_turns_are_dropped(least: int) -> None:
    turns, fits = [2, 4, 6, 8, 10], dict[int, bool]()
    while (cut := fitting_cut(turns, fits)) is not None:
        assert cut not in fits
        fits[cut] = cut > 2 * least
    assert len(fits) <= 3
    assert min((cut for cut, fit in fits.items() if fit), default=None) == next(
        (turn for turn in turns if turn > 2 * least), None
    )
