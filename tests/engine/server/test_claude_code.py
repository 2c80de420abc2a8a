"""A session of Claude Code, request by request as it sends them, read by Anthropic's own client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest

from tests.engine.server.in_process import App, app_in_process
from tests.engine.server.serving import Running, write_fake_model

PATH = "/v1/messages?beta=true"
TEMPLATE = Path(__file__).resolve().parents[3] / "models" / "berth-demo" / "chat_template.jinja"
BETAS = [
    "claude-code-20250219",
    "interleaved-thinking-2025-05-14",
    "context-management-2025-06-27",
    "prompt-caching-scope-2026-01-05",
    "mid-conversation-system-2026-04-07",
    "effort-2025-11-24",
    "of-tomorrow-2199-01-01",
]
HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": ",".join(BETAS),
    "anthropic-dangerous-direct-browser-access": "true",
    "x-app": "cli",
    "x-api-key": "none",
    "user-agent": "claude-cli/2.1.280 (external, cli)",
}
EPHEMERAL = {"type": "ephemeral"}


def tool(name: str, *needed: str, **properties: Any) -> dict[str, Any]:
    return {
        "name": name,
        "description": f"Does what {name} does.\n\n- Use it when it helps.",
        "input_schema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": properties or {"text": {"type": "string", "description": "What to do"}},
            "required": list(needed),
            "additionalProperties": False,
        },
    }


COUNT = {"type": "integer", "minimum": -9007199254740991, "exclusiveMaximum": 9007199254740991}
TOOLS: list[dict[str, Any]] = [
    {
        **tool(
            "Bash",
            "command",
            command={"type": "string"},
            timeout={"type": "number", "description": "Milliseconds"},
            run_in_background={"type": "boolean", "default": False},
        ),
        "eager_input_streaming": True,
    },
    tool("Read", "file_path", file_path={"type": "string"}, offset=COUNT, limit=COUNT),
    tool(
        "Edit",
        "file_path",
        "old_string",
        "new_string",
        file_path={"type": "string"},
        old_string={"type": "string"},
        new_string={"type": "string"},
    ),
    tool("Grep", "pattern", pattern={"type": "string"}, **{"-n": {"type": "boolean"}}),
    tool("WebFetch", "url", url={"type": "string", "format": "uri"}, prompt={"type": "string"}),
    tool(
        "TodoWrite",
        "todos",
        todos={
            "type": "array",
            "items": {"type": "object", "properties": {"status": {"enum": ["pending", "completed"]}}},
        },
    ),
    *[tool(name) for name in ("Write", "Glob", "Task", "Skill", "BashOutput", "KillShell", "ExitPlanMode")],
    *[{**tool(f"mcp__github__{name}"), "defer_loading": True} for name in ("list_issues", "get_issue")],
    {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
    {**tool("AskUserQuestion"), "strict": False, "cache_control": {**EPHEMERAL, "ttl": "1h"}},
]


def system_of(turn: int) -> list[dict[str, Any]]:
    mark = f"x-anthropic-billing-header: cc_version=2.1.280.0d9; cc_entrypoint=cli; cch=fa69{turn};"
    return [
        {"type": "text", "text": mark},
        {"type": "text", "text": "You are Claude Code, Anthropic's official CLI for Claude."},
        {
            "type": "text",
            "text": "You help with software. " * 20,
            "cache_control": {**EPHEMERAL, "ttl": "1h", "scope": "global"},
        },
        {"type": "text", "text": "# Environment\nPlatform: linux", "cache_control": EPHEMERAL},
    ]


def request_of(turn: int, messages: list[Any], **fields: Any) -> dict[str, Any]:
    return {
        "model": "fake",
        "max_tokens": 8000,
        "system": system_of(turn),
        "messages": messages,
        "tools": TOOLS,
        "thinking": {"type": "adaptive", "display": "omitted"},
        "output_config": {"effort": "medium"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": json.dumps({"device_id": "d", "session_id": "s"})},
        "diagnostics": {"previous_message_id": None},
        "safeguards": [{"type": "dangerous_tool_use", "classifier_context": {}}],
        **fields,
    }


ASKED: Any = {
    "role": "user",
    "content": [
        {"type": "text", "text": "<system-reminder>\nToday is Monday.\n</system-reminder>"},
        {"type": "text", "text": "Which port is free?", "cache_control": EPHEMERAL},
    ],
}
CALLS = (
    "<think>\nTwo looks.\n</think>\n\nLet me look."
    '\n<tool_call>\n{"name": "Bash", "arguments": {"command": "ss -ltn"}}\n</tool_call>'
    '\n<tool_call>\n{"name": "Read", "arguments": {"file_path": "/etc/ports", "limit": 5}}\n</tool_call>'
)
SCREENSHOT: Any = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
}
# What another provider has left behind before the user switched models.
ELSEWHERE: Any = [
    {"role": "user", "content": [{"type": "text", "text": "And this?"}, SCREENSHOT]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "It shows a port.", "signature": "EqoBCkgIARABGAIiQL2UoU0b"},
            {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix"},
            {"type": "text", "text": "I'll search. "},
            {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "port"}},
            {
                "type": "web_search_tool_result",
                "tool_use_id": "srvtoolu_1",
                "content": [
                    {
                        "type": "web_search_result",
                        "title": "Ports",
                        "url": "https://example.org/ports",
                        "encrypted_content": "EqgfCioIARgBIiQ3",
                        "page_age": None,
                    }
                ],
            },
            {
                "type": "text",
                "text": "Port 80 is taken",
                "citations": [
                    {
                        "type": "web_search_result_location",
                        "url": "https://example.org/ports",
                        "title": "Ports",
                        "encrypted_index": "Eo8B",
                        "cited_text": "80",
                    }
                ],
            },
            {"type": "text", "text": "."},
        ],
    },
    {"role": "system", "content": "<total_tokens>150000 tokens left</total_tokens>"},
    {"role": "user", "content": [{"type": "text", "text": "So?"}]},
]


@pytest.fixture(scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    directory = write_fake_model(tmp_path_factory.mktemp("model"), chat_template=TEMPLATE.read_text())
    async with app_in_process(
        directory, max_model_len=16000, tool_call_parser="hermes", reasoning_parser="qwen3"
    ) as app:
        yield app


@pytest.fixture(scope="module")
async def client(app: App) -> AsyncIterator[anthropic.AsyncAnthropic]:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app.asgi))
    async with anthropic.AsyncAnthropic(
        base_url="http://engine", api_key="none", max_retries=0, http_client=http
    ) as client:
        yield client


async def answer_of(app: App, client: anthropic.AsyncAnthropic, request: dict[str, Any]) -> Any:
    """The same whole, streamed, and put together by the client; and what has been ignored of it."""
    whole = await app.http.post(PATH, json=request, headers=HEADERS)
    assert whole.status_code == 200, whole.text
    assert "unknown" not in whole.headers.get("warning", "")
    extra = {name: request[name] for name in ("safeguards", "temperature") if name in request}
    typed = {name: value for name, value in request.items() if name not in extra}
    async with client.beta.messages.stream(**typed, betas=BETAS, extra_body=extra) as stream:
        kinds = [event.type async for event in stream]
        put_together = await stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    message = whole.json()
    told = json.loads(put_together.to_json())
    assert [_without_ids(block) for block in told["content"]] == [
        _without_ids(block) for block in message["content"]
    ]
    assert told["stop_reason"] == message["stop_reason"]
    assert told["usage"]["output_tokens"] == message["usage"]["output_tokens"]
    return message


def _without_ids(block: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name != "id" and value is not None}


def read_tokens(message: Any) -> int:
    return int(message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"])


async def test_the_title_of_a_session_follows_its_schema(app: App, client: anthropic.AsyncAnthropic) -> None:
    app.will_say('{"title": "Find a port"}')
    schema = {
        "type": "object",
        "properties": {"title": {"type": "string"}},
        "required": ["title"],
        "additionalProperties": False,
    }
    request = request_of(
        0,
        [{"role": "user", "content": [{"type": "text", "text": "Which port is free?"}]}],
        tools=[],
        thinking={"type": "disabled"},
        temperature=1,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    del request["context_management"], request["safeguards"]
    message = await answer_of(app, client, request)
    assert json.loads(message["content"][0]["text"]) == {"title": "Find a port"}
    assert message["stop_reason"] == "end_turn"


async def test_a_session_with_tools_a_history_from_elsewhere_and_a_count(
    app: App, client: anthropic.AsyncAnthropic
) -> None:
    app.will_say(CALLS)
    first = await answer_of(app, client, request_of(1, [ASKED]))
    thought, said, bash, read = first["content"]
    assert (thought["type"], thought["thinking"].strip()) == ("thinking", "Two looks.")
    assert thought["signature"]
    assert said["text"].strip() == "Let me look."
    assert (bash["name"], bash["input"]) == ("Bash", {"command": "ss -ltn"})
    assert (read["name"], read["input"]) == ("Read", {"file_path": "/etc/ports", "limit": 5})
    assert first["stop_reason"] == "tool_use"

    results = [
        {
            "type": "tool_result",
            "tool_use_id": bash["id"],
            "content": "<tool_use_error>ss: not found</tool_use_error>",
            "is_error": True,
        },
        {
            "type": "tool_result",
            "tool_use_id": read["id"],
            "content": [SCREENSHOT],
            "cache_control": EPHEMERAL,
        },
        {"type": "text", "text": "<system-reminder>\nKeep a list of todos.\n</system-reminder>"},
    ]
    history = [
        ASKED,
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": results},
        {
            "role": "system",
            "content": [{"type": "text", "text": "<total_tokens>160000 tokens left</total_tokens>"}],
        },
    ]
    app.will_say("Port 8000 is free.")
    second = await answer_of(app, client, request_of(2, history))
    assert [block["type"] for block in second["content"]] == ["text"]
    assert second["stop_reason"] == "end_turn"
    # The bill's mark differs from turn to turn, what the model reads doesn't.
    assert second["usage"]["cache_read_input_tokens"] > read_tokens(first) * 0.9

    history += [{"role": "assistant", "content": second["content"]}, *ELSEWHERE]
    thinking = {"type": "enabled", "budget_tokens": 4000}
    third = await answer_of(app, client, request_of(3, history, thinking=thinking))
    counted = await client.beta.messages.count_tokens(
        model="fake", system=system_of(4), messages=history, tools=TOOLS, thinking=thinking, betas=BETAS
    )
    assert counted.input_tokens == read_tokens(third)


async def test_what_is_ignored_is_named(app: App) -> None:
    app.will_say("Port 8000.")
    answer = await app.http.post(PATH, json=request_of(1, [ASKED, *ELSEWHERE[1:]]), headers=HEADERS)
    warning = answer.headers["warning"]
    assert "tools[15] (a tool of type web_search_20250305 can't run here)" in warning
    assert "safeguards (there is no classifier here)" in warning
    assert warning.count("(") == 2


async def test_what_another_provider_has_said_is_shown(app: App) -> None:
    """By its words: as long as the same history told in this server's own."""
    told = [
        {"role": "user", "content": "And this?\n[An image was here, which this model can't read.]"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I'll search. "},
                {"type": "tool_use", "id": "t", "name": "web_search", "input": {"query": "port"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": "title: Ports\nurl: https://example.org/ports",
                }
            ],
        },
        {"role": "assistant", "content": "Port 80 is taken."},
        *ELSEWHERE[2:],
    ]
    counts = []
    for messages in (ELSEWHERE, told):
        answer = await app.http.post("/v1/messages/count_tokens", json={"messages": messages})
        counts.append(answer.json()["input_tokens"])
    assert counts[0] == counts[1]


async def test_a_full_context_says_so(fake_model: Path) -> None:
    """Claude Code then makes room; of `max_tokens` it would ask for more."""
    async with app_in_process(fake_model, max_model_len=100) as small:
        small.will_say("a" * 100)
        for max_tokens, reason in [(99, "model_context_window_exceeded"), (5, "max_tokens")]:
            message = await small.ask("/v1/messages", max_tokens=max_tokens, messages=[ASKED])
            assert message["stop_reason"] == reason


def test_the_demo_model_answers_it(demo_server: Running) -> None:
    """With real tokens: Anthropic's client streams, calls a tool and goes on with a switch of its model."""
    weather = tool("get_weather", "city", city={"type": "string"})
    settings: Any = {
        "max_tokens": 100,
        "tools": [weather, TOOLS[-2]],
        "system": system_of(1)[:1],
        "context_management": {"edits": []},
        "betas": BETAS,
        "extra_body": {"temperature": 0},
    }
    asked: Any = {"role": "user", "content": [{"type": "text", "text": "What is the weather in Oslo?"}]}
    with anthropic.Anthropic(base_url=demo_server.url, api_key="none", max_retries=0) as client:
        with client.beta.messages.stream(model="fake", messages=[asked], **settings) as stream:
            first = stream.get_final_message()
        [use] = [block for block in first.content if block.type == "tool_use"]
        assert use.input == {"city": "Oslo"}
        result: Any = {
            "type": "tool_result",
            "tool_use_id": use.id,
            "content": [{"type": "text", "text": '{"temperature": 12, "sky": "cloudy"}'}],
        }
        history: Any = [asked, first, {"role": "user", "content": [result]}]
        settings["betas"] = []
        said = client.beta.messages.create(model="other-name", messages=history, **settings)
    assert "12" in said.content[-1].text  # type: ignore[union-attr]
