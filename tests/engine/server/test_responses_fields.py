"""The fields of /v1/responses, including all of OpenAI's."""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses.input_token_count_params import InputTokenCountParams
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming
from openai.types.responses.response_includable import ResponseIncludable
from openai.types.responses.response_input_item_param import ResponseInputItemParam

from engine.server.openai.responses.bodies import RULES, InputTokensBody, ResponsesBody
from engine.server.openai.responses.items import kind_of
from tests.engine.server.in_process import App, app_in_process
from tests.engine.server.responses_app import FUNCTION, ask, calling_app, error_of, types_of


@pytest.fixture
async def app(fake_model: Path) -> AsyncIterator[App]:
    async with calling_app(fake_model) as app:
        yield app


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
async def test_fields_without_effect_are_accepted(app: App, field: dict[str, Any]) -> None:
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
async def test_ignored_fields_are_named_in_a_warning(app: App, field: dict[str, Any], name: str) -> None:
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
async def test_fields_that_would_change_the_output_are_refused_by_name(
    app: App, field: dict[str, Any], param: str
) -> None:
    error = await error_of(app, **field)
    assert error["param"] == param


def test_every_field_of_the_sdk_is_known() -> None:
    for params, body in [
        (ResponseCreateParamsStreaming, ResponsesBody),
        (InputTokenCountParams, InputTokensBody),
    ]:
        fields = set(typing.get_type_hints(params))
        assert len(fields) > 10
        assert fields - set(body.model_fields) - RULES.names == set()


def test_every_item_of_the_sdk_is_known() -> None:
    types = set(types_of(ResponseInputItemParam))
    assert len(types) >= 30
    unknown = {kind for kind in types if kind_of({"type": kind}) is None}
    assert unknown == {"compaction_trigger", "configuration_update"}, "which would change the answer"


async def test_every_value_of_include_is_known(app: App) -> None:
    for value in typing.get_args(ResponseIncludable):
        response = await ask(app, include=[value])
        expected = 400 if value == "message.output_text.logprobs" else 200
        assert response.status_code == expected, value
        assert "warning" not in response.headers


async def test_a_response_repeats_the_request_fields(app: App) -> None:
    namespace = {"type": "namespace", "name": "n", "tools": [FUNCTION, {"type": "mcp"}]}
    request_fields: Any = {
        "tools": [FUNCTION, namespace, {"type": "web_search"}],
        "truncation": "auto",
        "max_tool_calls": 2,
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "service_tier": "flex",
    }
    answer = (await ask(app, **request_fields)).json()
    assert answer["service_tier"] == "default"
    for name in ("truncation", "max_tool_calls", "safety_identifier", "prompt_cache_key"):
        assert answer[name] == request_fields[name]
    assert [tool["type"] for tool in answer["tools"]] == ["function", "namespace"]


async def test_unknown_fields_are_refused_if_configured(fake_model: Path) -> None:
    async with app_in_process(fake_model, unknown_fields="refuse") as app:
        mistakes: list[tuple[dict[str, Any], str]] = [
            ({"temprature": 1}, "temprature"),
            ({"input": [{"role": "user", "content": "a", "mood": 1}]}, "input[0].mood"),
            ({"tools": [{**FUNCTION, "mood": 1}]}, "tools[0].mood"),
        ]
        for fields, param in mistakes:
            error = await error_of(app, **fields)
            assert error["param"] == param
