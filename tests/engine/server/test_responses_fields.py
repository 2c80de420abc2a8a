"""/v1/responses: what its fields do, and that none of OpenAI's is forgotten."""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import response_create_params, response_input_item_param
from openai.types.responses.response_includable import ResponseIncludable
from openai.types.responses.response_input_item_param import ResponseInputItemParam
from openai.types.responses.tool_param import ToolParam

from engine.server.responses.bodies import RULES, InputTokensBody, ResponsesBody
from engine.server.responses.items import _kind_of
from tests.engine.server.in_process import App, app_in_process

PATH = "/v1/responses"
FUNCTION: Any = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
}
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
    async with app_in_process(fake_model, tool_call_parser="hermes", reasoning_parser="qwen3") as app:
        app.will_say("Hello")
        yield app


@pytest.fixture
async def client(app: App) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url="http://engine/v1", api_key="none", max_retries=0, http_client=app.http
    ) as client:
        yield client


async def ask(app: App, **body: Any) -> httpx.Response:
    return await app.http.post(PATH, json={"input": "Hi", **body})


async def error_of(app: App, **body: Any) -> dict[str, Any]:
    response = await ask(app, **body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize(
    "field",
    [
        {"include": ["reasoning.encrypted_content", "web_search_call.action.sources"]},
        {"include": []},
        {"reasoning": {"summary": "auto"}},
        {"reasoning": {"effort": "xhigh", "summary": "detailed", "context": "all_turns", "mode": "pro"}},
        {"reasoning": {"effort": "minimal", "generate_summary": "concise"}},
        {"text": {"verbosity": "low"}},
        {"text": {"format": {"type": "text"}, "verbosity": "high"}},
        {"service_tier": "priority"},
        {"prompt_cache_key": "k", "prompt_cache_retention": "24h"},
        {"prompt_cache_options": {"mode": "explicit", "ttl": "30m", "prewarm": False}},
        {"safety_identifier": "s", "user": "u", "metadata": {"a": "b"}},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
        {"max_tool_calls": 3},
        {"truncation": "auto"},
        {"client_metadata": {"x-codex-installation-id": "1"}},
        {"access_programs": {"cyber": "standard"}, "image": {"context_compression": "auto"}},
        {"store": False, "parallel_tool_calls": False},
        {"top_logprobs": 0},
        {"tools": [], "tool_choice": "auto"},
    ],
)  # fmt: skip
async def test_what_asks_nothing_of_the_answer_costs_nothing(app: App, field: dict[str, Any]) -> None:
    response = await ask(app, **field)
    assert response.status_code == 200, response.text
    assert "warning" not in response.headers


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ({"context_management": [{"type": "compaction", "compact_threshold": 1000}]}, "context_management"),
        ({"include": ["weather.today"]}, "include"),
        ({"num_ctx": 1, "reasoning": {"depth": 1}}, "reasoning.depth"),
    ],
)
async def test_what_cannot_be_had_is_named_in_a_warning(app: App, field: dict[str, Any], name: str) -> None:
    response = await ask(app, **field)
    assert response.status_code == 200, response.text
    assert name in response.headers["warning"]


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"prompt_cache_options": {"prewarm": True}}, "prompt_cache_options.prewarm"),
        ({"generate": False}, "generate"),
        ({"reasoning": {"effort": "heroic"}}, "reasoning.effort"),
    ],
)
async def test_what_would_change_the_answer_is_refused_by_name(
    app: App, field: dict[str, Any], param: str
) -> None:
    error = await error_of(app, **field)
    assert error["param"] == param


def names_of(kind: Any) -> set[str]:
    return set(typing.get_type_hints(kind, include_extras=True))


def test_every_field_of_the_sdk_has_its_place() -> None:
    known = set(ResponsesBody.model_fields) | RULES.names
    base = response_create_params.ResponseCreateParamsBase
    missing = set(base.__annotations__) | {"stream"}
    assert missing - known == set()
    from openai.types.responses.input_token_count_params import InputTokenCountParams

    assert set(InputTokenCountParams.__annotations__) - set(InputTokenBodyNames) == set()


InputTokenBodyNames = set(InputTokensBody.model_fields) | RULES.names


def types_of(union: Any) -> Iterator[str]:
    """Of a union of the SDK's TypedDicts, what stands in `type`."""
    for member in typing.get_args(union):
        hint = typing.get_type_hints(member).get("type")
        for literal in [hint, *typing.get_args(hint)]:
            yield from (value for value in typing.get_args(literal) if isinstance(value, str))
            if isinstance(literal, str):
                yield literal


def test_every_item_of_the_sdk_has_its_place() -> None:
    types = set(types_of(ResponseInputItemParam))
    assert len(types) >= 30
    unread = {kind for kind in types if _kind_of({"type": kind}) == kind and kind not in READ}
    assert unread == {"compaction_trigger", "configuration_update"}, "which would change the answer"
    assert response_input_item_param.__all__


READ = {
    "message",
    "function_call",
    "custom_tool_call",
    "tool_search_call",
    "tool_search_output",
    "additional_tools",
    "reasoning",
    "item_reference",
}


async def test_every_tool_of_the_sdk_is_run_or_left_out(app: App) -> None:
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


async def test_every_value_of_include_is_known(app: App) -> None:
    for value in typing.get_args(ResponseIncludable):
        response = await ask(app, include=[value])
        expected = 400 if value == "message.output_text.logprobs" else 200
        assert response.status_code == expected, value
        assert "warning" not in response.headers


CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>'


@pytest.mark.parametrize("tool", FOREIGN_TOOLS, ids=lambda tool: str(tool["type"]))
async def test_functions_work_beside_a_tool_that_cannot_run_here(
    app: App, client: openai.AsyncOpenAI, tool: Any
) -> None:
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
async def test_a_tool_that_is_not_here_cannot_be_forced(app: App, choice: Any, param: str) -> None:
    error = await error_of(app, tools=[FUNCTION, {"type": "web_search"}], tool_choice=choice)
    assert error["param"] == param


async def test_no_tool_can_be_required_where_none_is_left(app: App) -> None:
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
async def test_a_choice_of_tools_that_are_here(app: App, choice: Any) -> None:
    app.will_say(CALL)
    other = {**FUNCTION, "name": "other"}
    response = await ask(app, tools=[FUNCTION, other], tool_choice=choice)
    assert response.status_code == 200, response.text
    assert response.json()["tool_choice"] == choice


async def test_two_tools_of_one_name_are_an_error(app: App) -> None:
    error = await error_of(app, tools=[FUNCTION, {"type": "custom", "name": "look"}])
    assert error["param"] == "tools"


async def test_a_wrong_tool_is_named_by_its_own_place(app: App) -> None:
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


async def test_a_grammar_that_is_only_shown_is_named_in_a_warning(app: App) -> None:
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
    app.will_say(spelling.replace("aba", "abc"))  # the runner says it though it may not
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


async def test_a_tool_of_a_namespace_is_called_by_both_its_names(
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


async def test_a_search_for_tools_is_the_clients(app: App, client: openai.AsyncOpenAI) -> None:
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


async def test_a_sealed_thought_is_read_again(app: App, client: openai.AsyncOpenAI) -> None:
    app.will_say("<think>hm é</think>Yes.")
    answer = await client.responses.create(
        model="fake", input="Hi", store=False, include=["reasoning.encrypted_content"]
    )
    thought = answer.output[0]
    assert thought.type == "reasoning" and thought.encrypted_content
    bare: Any = {"type": "reasoning", "summary": [], "encrypted_content": thought.encrypted_content}
    plain: Any = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm é"}]}
    counts = [
        (
            await client.responses.input_tokens.count(
                model="fake", input=[one, {"role": "user", "content": "a"}]
            )
        )
        for one in (bare, plain)
    ]
    assert counts[0] == counts[1]
    response = await ask(app, input=[bare, {"role": "user", "content": "a"}])
    assert response.status_code == 200 and "warning" not in response.headers
    app.will_say("<think>hm é</think>Yes.")
    assert "encrypted_content" not in (await ask(app)).json()["output"][0]


async def test_input_items_are_listed_by_pages(client: openai.AsyncOpenAI) -> None:
    given: Any = [{"role": "user", "content": str(number)} for number in range(5)]
    answer = await client.responses.create(model="fake", input=given)
    pages = client.responses.input_items.list(answer.id, order="asc", limit=2)
    items = [item async for item in pages]
    texts = [item.content[0].text for item in items if item.type == "message"]  # type: ignore[union-attr]
    assert texts == ["0", "1", "2", "3", "4"]
    newest = await client.responses.input_items.list(answer.id, limit=1)
    assert newest.has_more and newest.data[0].id == items[-1].id
    following = await client.responses.create(model="fake", input="5", previous_response_id=answer.id)
    listed = (await client.responses.input_items.list(following.id, order="asc")).data
    assert [item.type for item in listed] == ["message"] * 7
    assert listed[5].id == answer.output[0].id


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=x", "after")],
)
async def test_a_wrong_page_is_named(app: App, query: str, param: str) -> None:
    name = (await ask(app)).json()["id"]
    response = await app.http.get(f"{PATH}/{name}/input_items?{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_input_items_of_an_unknown_response(app: App) -> None:
    assert (await app.http.get(f"{PATH}/resp_none/input_items")).status_code == 404


async def test_input_tokens_are_those_of_the_answer(client: openai.AsyncOpenAI) -> None:
    given: Any = {"model": "fake", "input": "Hi", "instructions": "Be brief."}
    count = await client.responses.input_tokens.count(**given)
    answer = await client.responses.create(**given)
    assert answer.usage is not None and count.input_tokens == answer.usage.input_tokens
    assert count.object == "response.input_tokens"


async def test_a_stored_response_is_given_whole(app: App, client: openai.AsyncOpenAI) -> None:
    name = (await ask(app)).json()["id"]
    answer = await client.responses.retrieve(name, include=["reasoning.encrypted_content"])
    assert answer.output_text == "Hello"
    response = await app.http.get(f"{PATH}/{name}?stream=true")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "stream")


async def test_a_conversation_that_is_too_long_is_cut_where_asked(app: App) -> None:
    turns = [{"role": "user", "content": f"{number} " + "x" * 300} for number in range(12)]
    given = [{"role": "developer", "content": "Be brief."}, *turns]
    error = await error_of(app, input=given)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
    response = await ask(app, input=given, truncation="auto", max_output_tokens=4)
    assert response.status_code == 200, response.text
    assert 1600 < response.json()["usage"]["input_tokens"] < 2000
    error = await error_of(app, input=[{"role": "user", "content": "x" * 3000}], truncation="auto")
    assert error["code"] == "context_length_exceeded"


async def test_a_response_repeats_what_was_asked(app: App) -> None:
    asked: Any = {
        "tools": [FUNCTION, NAMESPACE],
        "truncation": "auto",
        "max_tool_calls": 2,
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "service_tier": "flex",
    }
    answer = (await ask(app, **asked)).json()
    assert answer["service_tier"] == "default"
    for name in ("truncation", "max_tool_calls", "safety_identifier", "prompt_cache_key"):
        assert answer[name] == asked[name]
    assert [tool["type"] for tool in answer["tools"]] == ["function", "namespace"]


async def test_unknown_fields_may_still_be_refused(fake_model: Path) -> None:
    async with app_in_process(fake_model, unknown_fields="refuse") as app:
        for fields, param in [
            ({"temprature": 1}, "temprature"),
            ({"input": [{"role": "user", "content": "a", "mood": 1}]}, "input[0].mood"),
            ({"tools": [{**FUNCTION, "mood": 1}]}, "tools[0].mood"),
        ]:
            error = await error_of(app, **fields)
            assert error["param"] == param
