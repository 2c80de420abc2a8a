"""Requests of Claude Code: headers, tools, system prompt, settings, and another provider's history."""

from __future__ import annotations

import json
from typing import Any

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
SCREENSHOT: Any = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
}
# The history of another provider, before the user switched models.
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
