"""Multi-turn sessions of Codex and the AI SDK on /v1/responses.

The formats are those of Codex (codex-rs: the request, its tools and its history) with `store: false`, in its
older form with `tools` and in its newer one with an `additional_tools` item, and of the AI SDK's OpenAI
provider, with `store: true` and item references, and with sealed reasoning.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.server.in_process import App, app_in_process

PATH = "/v1/responses"
EXEC: Any = {
    "type": "function",
    "name": "exec_command",
    "description": "Runs a command in a PTY.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {"cmd": {"type": "string"}, "yield_time_ms": {"type": "number"}},
        "required": ["cmd"],
        "additionalProperties": False,
    },
}
PLAN: Any = {
    "type": "function",
    "name": "update_plan",
    "description": "Updates the task plan.",
    "strict": False,
    "parameters": {"type": "object", "properties": {"plan": {"type": "array", "items": {"type": "object"}}}},
}
VIEW_IMAGE: Any = {
    "type": "function",
    "name": "view_image",
    "description": "View a local image.",
    "strict": False,
    "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
}
APPLY_PATCH: Any = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Use the `apply_patch` tool to edit files. This is a FREEFORM tool, no JSON.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: begin hunk+ end\nbegin: "***"'},
}
SEARCH: Any = {"type": "web_search", "external_web_access": False}
TOOL_SEARCH: Any = {
    "type": "tool_search",
    "execution": "client",
    "description": "Finds tools.",
    "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
}
AGENTS: Any = {
    "type": "namespace",
    "name": "collaboration",
    "description": "Sub-agents.",
    "tools": [{**EXEC, "name": "spawn_agent", "defer_loading": True, "output_schema": {"type": "object"}}],
}
IMAGE_GENERATION: Any = {"type": "image_generation", "output_format": "png"}
TOOLS = [EXEC, PLAN, APPLY_PATCH, SEARCH, VIEW_IMAGE, TOOL_SEARCH, AGENTS, IMAGE_GENERATION]


def message(role: str, text: str) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


BEGINNING = [
    message("developer", "<permissions instructions>\nread-only\n</permissions instructions>"),
    message("user", "# AGENTS.md instructions for /repo\n\n<INSTRUCTIONS>\nBe brief.\n</INSTRUCTIONS>"),
    message(
        "user", "<environment_context>\n  <cwd>/repo</cwd>\n  <shell>bash</shell>\n</environment_context>"
    ),
    message("user", "Fix the test."),
]


def codex(history: list[Any], **fields: Any) -> dict[str, Any]:
    """A request in Codex's format."""
    return {
        "model": "fake",
        "instructions": "You are Codex.",
        "input": history,
        "tools": TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto", "context": "all_turns"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "service_tier": "priority",
        "prompt_cache_key": "0199a213-81c0-7800-8aa1-bbab2a035a53",
        "text": {"verbosity": "low"},
        "client_metadata": {"x-codex-installation-id": "i", "thread_id": "t"},
        **fields,
    }


@pytest.fixture
async def app(fake_model: Path) -> AsyncIterator[App]:
    async with app_in_process(
        fake_model,
        tool_call_parser="hermes",
        reasoning_parser="qwen3",
        served_model_names=("fake", "other"),
    ) as app:
        yield app


async def stream(app: App, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = await app.http.post(PATH, json=body)
    assert response.status_code == 200, response.text
    events = []
    for block in response.text.split("\n\n"):
        if block:
            name, data = block.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created" and events[-1]["type"] == "response.completed"
    assert {"id", "usage"} <= set(events[-1]["response"])
    return events


async def turn(app: App, history: list[Any], says: str, **fields: Any) -> list[dict[str, Any]]:
    """The completed items of one request without their ids, as Codex keeps them."""
    app.will_say(says)
    events = await stream(app, codex(history, **fields))
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    kept = [{name: value for name, value in item.items() if name != "id"} for item in done]
    for item in kept:
        if item["type"] == "reasoning":  # Codex keeps only the sealed reasoning
            assert item.pop("content") and item["encrypted_content"]
    return kept


def says(name: str, **arguments: Any) -> str:
    call = {"name": name, "arguments": arguments}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


PATCH = "*** Begin Patch\n*** Update File: a.py\n-é\n+🙂\n*** End Patch"


async def test_a_session_of_codex(app: App) -> None:
    history: list[Any] = list(BEGINNING)

    done = await turn(
        app,
        history,
        f"<think>hm</think>Looking.{says('exec_command', cmd='ls')}\n{says('update_plan', plan=[])}",
    )
    assert [item["type"] for item in done] == ["reasoning", "message", "function_call", "function_call"]
    assert [item["name"] for item in done[2:]] == ["exec_command", "update_plan"]
    assert json.loads(done[2]["arguments"]) == {"cmd": "ls"}
    history += done
    history += [
        {
            "type": "function_call_output",
            "call_id": done[2]["call_id"],
            "output": "exit code 1: no such file",
        },
        {"type": "function_call_output", "call_id": done[3]["call_id"], "output": "Plan updated"},
    ]

    done = await turn(app, history, says("apply_patch", input=PATCH))
    [patch] = done
    assert (patch["type"], patch["name"], patch["input"]) == ("custom_tool_call", "apply_patch", PATCH)
    history += [patch, {"type": "custom_tool_call_output", "call_id": patch["call_id"], "output": "Success."}]

    done = await turn(app, history, says("view_image", path="a.png"))
    image = [{"type": "input_image", "image_url": "data:image/png;base64,iVBOR", "detail": "high"}]
    history += [*done, {"type": "function_call_output", "call_id": done[0]["call_id"], "output": image}]

    done = await turn(app, history, says("tool_search", query="mail"), model="other")
    [search] = done
    assert (search["type"], search["arguments"]) == ("tool_search_call", {"query": "mail"})
    found = {
        "type": "namespace",
        "name": "mcp__mail",
        "description": "",
        "tools": [{**EXEC, "name": "_send"}],
    }
    output = {"type": "tool_search_output", "status": "completed", "execution": "client", "tools": [found]}
    history += [search, {**output, "call_id": search["call_id"]}]

    done = await turn(
        app, history, f"{says('mcp__mail___send', cmd='x')}\n{says('collaboration__spawn_agent')}"
    )
    assert [(item["namespace"], item["name"]) for item in done] == [
        ("mcp__mail", "_send"),
        ("collaboration", "spawn_agent"),
    ]
    history += done
    history += [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "aborted"} for item in done
    ]

    done = await turn(app, history, "Done.")
    assert done[0]["content"][0]["text"] == "Done."


async def test_a_session_of_codex_with_its_tools_in_the_input(app: App) -> None:
    code_mode = {**APPLY_PATCH, "name": "exec", "description": "Runs JavaScript."}
    tools = [
        {"type": "namespace", "name": "functions", "tools": [code_mode, {**PLAN, "name": "wait"}]},
        AGENTS,
    ]
    added = {"type": "additional_tools", "role": "developer", "tools": tools, "id": None}
    body: dict[str, Any] = {"tools": [], "parallel_tool_calls": False}
    history: list[Any] = [added, *BEGINNING]
    [call] = await turn(app, history, says("exec", input="await ls()"), **body)
    assert (call["type"], call["name"], call["input"]) == ("custom_tool_call", "exec", "await ls()")
    assert "namespace" not in call
    output = [{"type": "input_text", "text": "a.py"}, {"type": "input_text", "text": "b.py"}]
    history += [call, {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": output}]
    [call] = await turn(app, history, says("wait"), **body)
    assert (call["type"], call["name"]) == ("function_call", "wait")


async def test_codex_can_continue_another_providers_session(app: App) -> None:
    shell = {"type": "exec", "command": ["bash", "-lc", "ls"], "timeout_ms": None, "env": None}
    search = {"type": "search", "query": "x", "queries": ["x"]}
    history = [
        *BEGINNING,
        {"type": "compaction", "encrypted_content": "gAAAAAB"},
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "gAAAAAB"},
        {**message("assistant", "I look."), "phase": "commentary"},
        {"type": "local_shell_call", "call_id": "call_1", "status": "completed", "action": shell},
        {"type": "function_call_output", "call_id": "call_1", "output": "a.py"},
        {"type": "web_search_call", "status": "completed", "action": search},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "**Hm**"}]},
        {
            "type": "custom_tool_call",
            "status": "completed",
            "call_id": "call_2",
            "name": "apply_patch",
            "input": "x",
        },
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": "failed"},
        {
            "type": "function_call",
            "call_id": "call_3",
            "name": "f",
            "namespace": "collaboration",
            "arguments": "{",
        },
        {"type": "function_call_output", "call_id": "call_3", "output": "unsupported call"},
        {"type": "function_call_output", "name": "f", "namespace": "codex_app", "output": "of no call"},
        {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "iVBOR"},
        message("user", "Go on."),
    ]
    [answer] = await turn(app, history, "Yes.")
    assert answer["content"][0]["text"] == "Yes."


async def test_a_session_of_codex_names_ignored_tools(app: App) -> None:
    app.will_say("Yes.")
    response = await app.http.post(PATH, json=codex(BEGINNING))
    warning = response.headers["warning"]
    assert "tools[3] (a tool of type web_search can't run on this server)" in warning
    assert "tools[7]" in warning
    assert "tools[0]" not in warning


def by_the_ai_sdk(given: list[Any], **fields: Any) -> dict[str, Any]:
    function = {**EXEC, "name": "weather"}
    return {"model": "fake", "input": given, "tools": [function], "tool_choice": "auto", **fields}


SDK_USER = {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]}


async def test_a_session_of_the_ai_sdk_refers_to_items(app: App) -> None:
    app.will_say(f"<think>hm</think>Let me see.{says('weather', cmd='Oslo')}")
    first = await app.ask(PATH, **by_the_ai_sdk([SDK_USER], include=["reasoning.encrypted_content"]))
    reasoning, words, call = first["output"]
    following = [
        SDK_USER,
        {"type": "item_reference", "id": reasoning["id"]},
        {"type": "item_reference", "id": words["id"]},
        {
            "type": "function_call",
            "call_id": call["call_id"],
            "name": "weather",
            "arguments": call["arguments"],
        },
        {"type": "function_call_output", "call_id": call["call_id"], "output": '{"sky":"grey"}'},
    ]
    app.will_say("Grey.")
    second = await app.ask(PATH, **by_the_ai_sdk(following))
    assert second["output"][0]["content"][0]["text"] == "Grey."
    referred = await app.ask(
        PATH, **by_the_ai_sdk([*following, {"type": "item_reference", "id": call["id"]}])
    )
    assert referred["usage"]["input_tokens"] >= second["usage"]["input_tokens"]


async def test_a_session_of_the_ai_sdk_without_a_store(app: App) -> None:
    asked = {"store": False, "include": ["reasoning.encrypted_content"], "stream": True}
    app.will_say("<think>hm</think>Hello.")
    events = await stream(app, by_the_ai_sdk([SDK_USER], **asked))
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    reasoning = {"type": "reasoning", "id": done[0]["id"], "summary": []}
    words = {"role": "assistant", "content": [{"type": "output_text", "text": "Hello."}], "id": done[1]["id"]}
    for encrypted in (done[0]["encrypted_content"], "gAAAAAB", None):
        given = [SDK_USER, {**reasoning, "encrypted_content": encrypted}, words, SDK_USER]
        await stream(app, by_the_ai_sdk(given, **asked))
