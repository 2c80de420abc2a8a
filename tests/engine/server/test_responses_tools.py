"""Tools of /v1/responses: supported ones, how they are called, and ignored ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses.tool_param import ToolParam

from tests.engine.server.in_process import App
from tests.engine.server.responses_app import CALL, FUNCTION, ask, calling_app, error_of, sdk, types_of

FOREIGN_TOOLS: list[Any] = [
    {"type": "web_search", "external_web_access": True, "filters": None},
    {"type": "web_search_preview"},
    {"type": "local_shell"},
    {"type": "shell", "environment": {"type": "local"}},
    {"type": "apply_patch"},
    {"type": "tool_search"},
    {"type": "file_search", "vector_store_ids": ["v"]},
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"type": "computer"},
    {"type": "computer_use_preview", "display_width": 1, "display_height": 1, "environment": "mac"},
    {"type": "image_generation", "output_format": "png"},
    {"type": "mcp", "server_label": "s", "server_url": "https://example.com"},
    {"type": "programmatic_tool_calling"},
]
LOOK = {"type": "function", "name": "look"}


@pytest.fixture
async def app(fake_model: Path) -> AsyncIterator[App]:
    async with calling_app(fake_model) as app:
        yield app


@pytest.fixture
def client(app: App) -> openai.AsyncOpenAI:
    return sdk(app)


async def test_every_tool_of_the_sdk_is_supported_or_ignored(app: App) -> None:
    runnable = {"function", "custom", "namespace"}
    types = set(types_of(ToolParam)) - runnable
    assert types >= {tool["type"] for tool in FOREIGN_TOOLS} - {"computer_use"}
    for kind in types:
        response = await ask(app, tools=[FUNCTION, {"type": kind}])
        assert response.status_code == 200, (kind, response.text)
        assert [tool["type"] for tool in response.json()["tools"] if tool["type"] != "tool_search"] == [
            "function"
        ]
        assert "tools[" in response.headers["warning"], kind


@pytest.mark.parametrize("tool", FOREIGN_TOOLS, ids=lambda tool: str(tool["type"]))
async def test_functions_work_next_to_hosted_tools(app: App, client: openai.AsyncOpenAI, tool: Any) -> None:
    app.will_say(CALL)
    for tools in ([FUNCTION, tool], [tool, FUNCTION]):
        answer = await client.responses.create(model="fake", input="Hi", tools=tools)
        [call] = answer.output
        assert call.type == "function_call" and (call.name, call.arguments) == ("look", '{"at": "é"}')


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ({"type": "web_search"}, "tool_choice.type"),
        ({"type": "mcp", "server_label": "s", "name": "f"}, "tool_choice.type"),
        ({"type": "shell"}, "tool_choice.type"),
        ({"type": "apply_patch"}, "tool_choice.type"),
        ({"type": "programmatic_tool_calling"}, "tool_choice.type"),
        ({"type": "custom", "name": "look"}, "tool_choice.name"),
        ({"type": "function", "name": "other"}, "tool_choice.name"),
        ({"type": "function", "name": "look", "namespace": "x"}, "tool_choice.name"),
        ({"type": "function"}, "tool_choice.name"),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]}, "tool_choice"),
        ("perhaps", "tool_choice"),
    ],
)
async def test_an_unavailable_tool_cannot_be_forced(app: App, choice: Any, param: str) -> None:
    error = await error_of(app, tools=[FUNCTION, {"type": "web_search"}], tool_choice=choice)
    assert error["param"] == param


async def test_no_call_can_be_required_without_usable_tools(app: App) -> None:
    error = await error_of(app, tools=[{"type": "web_search"}], tool_choice="required")
    assert error["param"] == "tool_choice"


@pytest.mark.parametrize(
    "choice",
    [
        "auto",
        "required",
        {"type": "function", "name": "look"},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look"}]},
        {"type": "allowed_tools", "mode": "required", "tools": [LOOK, {"type": "mcp"}]},
        {"type": "allowed_tools", "mode": "auto", "tools": []},
    ],
)  # fmt: skip
async def test_a_choice_of_available_tools_works(app: App, choice: Any) -> None:
    app.will_say(CALL)
    other = {**FUNCTION, "name": "other"}
    response = await ask(app, tools=[FUNCTION, other], tool_choice=choice)
    assert response.status_code == 200, response.text
    assert response.json()["tool_choice"] == choice


async def test_duplicate_tool_names_are_refused(app: App) -> None:
    error = await error_of(app, tools=[FUNCTION, {"type": "custom", "name": "look"}])
    assert error["param"] == "tools"


async def test_an_invalid_tool_is_named_by_its_path(app: App) -> None:
    wrong = {**FUNCTION, "name": "wrong", "parameters": {"type": "array"}}
    tools = [{"type": "web_search"}, {"type": "namespace", "name": "n", "tools": [FUNCTION, wrong]}]
    error = await error_of(app, tools=tools, tool_choice="required")
    assert error["param"] == "tools[1].tools[1].parameters.type"
    assert error["message"].startswith(error["param"])


PATCH = "*** Begin Patch\n-é\n+🙂\n*** End Patch"
PATCH_CALL = '<tool_call>\n{"name": "apply_patch", "arguments": {"input": "*** Begin Patch\\n-é\\n+🙂\\n*** End Patch"}}\n</tool_call>'  # fmt: skip  # noqa: E501
APPLY_PATCH: Any = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
}


async def test_a_custom_tool_is_called_with_its_text(app: App, client: openai.AsyncOpenAI) -> None:
    app.will_say(PATCH_CALL)
    answer = await client.responses.create(model="fake", input="Hi", tools=[APPLY_PATCH])
    [call] = answer.output
    assert call.type == "custom_tool_call" and (call.name, call.input) == ("apply_patch", PATCH)
    output: Any = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "Done"}
    app.will_say("Good.")
    following = await client.responses.create(
        model="fake", input=[output], previous_response_id=answer.id, tools=[APPLY_PATCH]
    )
    assert following.output_text == "Good."


async def test_a_custom_tools_text_is_streamed(app: App, client: openai.AsyncOpenAI) -> None:
    app.will_say(f"Now:\n{PATCH_CALL}")
    async with client.responses.stream(model="fake", input="Hi", tools=[APPLY_PATCH]) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert [item.type for item in final.output] == ["message", "custom_tool_call"]
    deltas = [event for event in events if event.type == "response.custom_tool_call_input.delta"]
    assert "".join(event.delta for event in deltas) == PATCH
    [done] = [event for event in events if event.type == "response.custom_tool_call_input.done"]
    assert done.input == PATCH
    types = [event.type for event in events if getattr(event, "output_index", None) == 1]
    assert types[0] == "response.output_item.added" and types[-1] == "response.output_item.done"
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_a_grammar_that_is_not_enforced_is_named_in_a_warning(app: App) -> None:
    assert "format" in (await ask(app, tools=[APPLY_PATCH])).headers["warning"]


async def test_a_regex_is_enforced(app: App) -> None:
    regex = {"type": "grammar", "syntax": "regex", "definition": "[ab]{3}"}
    tool = {"type": "custom", "name": "spell", "format": regex}
    forced = {"tools": [tool], "tool_choice": {"type": "custom", "name": "spell"}}
    spelling = '<tool_call>\n{"name": "spell", "arguments": {"input": "aba"}}\n</tool_call>'
    app.will_say(spelling)
    response = await ask(app, **forced)
    assert "warning" not in response.headers
    [call] = response.json()["output"]
    assert call["input"] == "aba"
    app.will_say(spelling.replace("aba", "abc"))  # the runner ignores constraints
    assert (await ask(app, **forced)).json()["error"]["code"] == "generation_failed"
    error = await error_of(
        app,
        tools=[FUNCTION, {**tool, "format": {**regex, "definition": "("}}],
        tool_choice={"type": "custom", "name": "spell"},
    )
    assert error["param"].startswith("tools")


NAMESPACE: Any = {
    "type": "namespace",
    "name": "mcp__files",
    "description": "Files",
    "tools": [FUNCTION, {"type": "custom", "name": "write"}, {"type": "mcp"}],
}


async def test_a_namespaced_tool_is_called_with_name_and_namespace(
    app: App, client: openai.AsyncOpenAI
) -> None:
    app.will_say(CALL.replace("look", "mcp__files__look"))
    answer = await client.responses.create(model="fake", input="Hi", tools=[FUNCTION, NAMESPACE])
    [call] = answer.output
    assert call.type == "function_call"
    assert (call.namespace, call.name, call.arguments) == ("mcp__files", "look", '{"at": "é"}')
    assert "tools[0].tools[2]" in (await ask(app, tools=[NAMESPACE])).headers["warning"]
    app.will_say(PATCH_CALL.replace("apply_patch", "mcp__files__write"))
    answer = await client.responses.create(model="fake", input="Hi", tools=[NAMESPACE])
    [custom] = answer.output
    assert custom.type == "custom_tool_call"
    assert (custom.namespace, custom.name, custom.input) == ("mcp__files", "write", PATCH)


async def test_a_tool_search_is_run_by_the_client(app: App, client: openai.AsyncOpenAI) -> None:
    search: Any = {"type": "tool_search", "execution": "client", "parameters": FUNCTION["parameters"]}
    app.will_say(CALL.replace("look", "tool_search"))
    async with client.responses.stream(model="fake", input="Hi", tools=[search]) as stream:
        final = await stream.get_final_response()
    [call] = final.output
    assert call.type == "tool_search_call"
    assert (call.execution, call.arguments, call.status) == ("client", {"at": "é"}, "completed")
    app.will_say(CALL)
    found: Any = {"type": "tool_search_output", "call_id": call.call_id, "tools": [FUNCTION]}
    following = await client.responses.create(
        model="fake", input=[found], previous_response_id=final.id, tools=[search]
    )
    assert following.output[0].type == "function_call"
