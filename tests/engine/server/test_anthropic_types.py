"""Everything that Anthropic's SDK can send is accepted, or refused by name if it would change the output.

The tests enumerate the SDK's types: each kind of block, tool and setting, with each of their fields.
"""

from __future__ import annotations

import types
import typing
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin

import pytest
from anthropic.types import (
    Message,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
    message_count_tokens_params,
    message_create_params,
)
from anthropic.types.beta import (
    BetaMessage,
    BetaTextBlock,
    BetaThinkingBlock,
    BetaToolUseBlock,
)
from anthropic.types.beta import message_count_tokens_params as beta_count_params
from anthropic.types.beta import message_create_params as beta_create_params
from typing_extensions import get_type_hints, is_typeddict

from engine.server.messages.blocks import TextBlock as OurText
from engine.server.messages.blocks import ThinkingBlock as OurThought
from engine.server.messages.blocks import ToolUseBlock as OurCall
from engine.server.messages.bodies import COUNT_RULES, RULES, AnthropicMessage, CountBody, MessagesBody
from tests.engine.server.in_process import App, app_in_process

PATH = "/v1/messages"
CREATE: Any = {
    "plain": message_create_params.MessageCreateParamsStreaming,
    "beta": beta_create_params.MessageCreateParamsStreaming,
}
COUNT: Any = {
    "plain": message_count_tokens_params.MessageCountTokensParams,
    "beta": beta_count_params.MessageCountTokensParams,
}
HI: Any = {"role": "user", "content": "Hi"}


def samples(hint: Any, *, is_full: bool = True) -> list[Any]:
    """Sample values of a type: one per union variant; objects with all and with only required fields."""
    origin = get_origin(hint)
    if origin in (Required, NotRequired, typing.Annotated):
        return samples(get_args(hint)[0], is_full=is_full)
    if is_typeddict(origin or hint):
        return _objects(origin or hint, is_full=is_full)
    if origin in (Union, types.UnionType):
        return [one for part in get_args(hint) for one in samples(part, is_full=is_full)]
    if origin is Literal:
        return list(get_args(hint))
    if origin in (list, Sequence, Iterable) or (origin is not None and issubclass(origin, Iterable)):
        if origin is dict:
            [inner] = samples(get_args(hint)[1], is_full=False)[:1]
            return [{"x": inner}]
        return [[one] for one in samples(get_args(hint)[0], is_full=is_full)]
    plain: dict[Any, list[Any]] = {
        str: ["x"],
        int: [1],
        bool: [True, False],
        type(None): [None],
        object: [{"x": 1}],
    }
    return plain.get(hint, [])  # files and paths are read by the SDK


def _objects(kind: Any, *, is_full: bool) -> list[dict[str, Any]]:
    hints: dict[str, Any] = get_type_hints(kind, include_extras=True)
    needed = {
        name: samples(hint, is_full=False) for name, hint in hints.items() if get_origin(hint) is Required
    }
    least = {name: values[0] for name, values in needed.items() if values}
    found = [least, *[{**least, name: one} for name, values in needed.items() for one in values[1:]]]
    if is_full:
        # Tools inside blocks are the body's tools, which are covered there.
        rest = {name: samples(hint, is_full=name != "definition") for name, hint in hints.items()}
        found += [{**least, name: one} for name, values in rest.items() for one in values]
    return [one for number, one in enumerate(found) if one not in found[:number]]


def hints_of(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def blocks_of(place: str) -> list[Any]:
    """Every block that a message of a role can contain, in every form."""
    found: list[Any] = []
    for params in CREATE.values():
        for message in samples(hints_of(params)["messages"]):
            [turn] = message
            if turn["role"] == place and isinstance(turn.get("content"), list):
                found += turn["content"]
    return found


def named(values: Sequence[Any]) -> dict[str, list[Any]]:
    by_type: dict[str, list[Any]] = {}
    for value in values:
        by_type.setdefault(value["type"], []).append(value)
    return by_type


USER_BLOCKS = named(blocks_of("user"))
ASSISTANT_BLOCKS = named(blocks_of("assistant"))
SYSTEM_BLOCKS = named(blocks_of("system"))
TOOLS = named(
    [tool for params in CREATE.values() for [tool] in samples(hints_of(params)["tools"]) if "type" in tool]
)


@pytest.fixture(scope="module")
async def app(fake_model: Path) -> AsyncIterator[App]:
    async with app_in_process(fake_model, tool_call_parser="hermes", reasoning_parser="qwen3") as app:
        app.will_say("Hello")
        yield app


async def answer_of(app: App, path: str = PATH, **fields: Any) -> tuple[int, Any, str]:
    limit = {} if path.endswith("count_tokens") else {"max_tokens": 5}
    response = await app.http.post(path, json={**limit, "messages": [HI], **fields})
    warning = response.headers.get("warning", "")
    assert "unknown field" not in warning, fields
    return response.status_code, response.json(), warning


def test_the_types_are_found() -> None:
    assert len(USER_BLOCKS) > 15
    assert USER_BLOCKS.keys() == ASSISTANT_BLOCKS.keys()
    assert {"text", "tool_addition", "tool_removal"} <= SYSTEM_BLOCKS.keys()
    assert len(TOOLS) > 20


@pytest.mark.parametrize("kind", ["plain", "beta"])
def test_no_field_is_unknown(kind: str) -> None:
    created = MessagesBody.model_fields.keys() | RULES.names
    counted = CountBody.model_fields.keys() | COUNT_RULES.names
    assert hints_of(CREATE[kind]).keys() <= created
    assert hints_of(COUNT[kind]).keys() | hints_of(CREATE[kind]).keys() <= counted
    assert not MessagesBody.model_fields.keys() & RULES.names
    assert not CountBody.model_fields.keys() & COUNT_RULES.names


REFUSED = {"compaction", "thread"}  # they would change the output


@pytest.mark.parametrize("kind", ["plain", "beta"])
async def test_every_setting_is_answered_or_refused_by_name(app: App, kind: str) -> None:
    tool = {"name": "x", "input_schema": {"type": "object"}}
    for name, hint in hints_of(CREATE[kind]).items():
        if name in ("messages", "tools", "model", "stream"):
            continue
        # The fake model ignores constraints.
        path = f"{PATH}/count_tokens" if name in ("output_config", "tool_choice") else PATH
        for value in samples(hint):
            fields = {"tools": [tool]} if name == "tool_choice" else {}
            status, answer, _ = await answer_of(app, path, **fields, **{name: value})
            if name in REFUSED and value not in (None, {"type": "create"}):
                expected = 404 if name == "thread" and value["type"] == "continue" else 400
                assert (status, answer["error"]["param"]) == (expected, name)
            else:
                assert status == 200, (name, value, answer)


@pytest.mark.parametrize("path", [PATH, f"{PATH}/count_tokens"])
@pytest.mark.parametrize("kind", TOOLS)
async def test_every_tool_is_offered_or_ignored_with_a_warning(app: App, kind: str, path: str) -> None:
    function = {"name": "own", "input_schema": {"type": "object"}}
    for tool in TOOLS[kind]:
        status, answer, warning = await answer_of(app, path, tools=[tool, function])
        assert status == 200, (tool, answer)
        is_ignored = f"tools[0] (a tool of type {kind} can't run on this server)" in warning
        assert is_ignored == (kind not in ("custom", None)), (tool, warning)


UNSUPPORTED_MEDIA = {"image", "document"}
NOT_THE_USERS = {"thinking", "redacted_thinking", "tool_use", "server_tool_use", "mcp_tool_use"}


def is_text(block: Any) -> bool:
    return block["type"] != "image" and block.get("source", {}).get("type") not in ("base64", "url", "file")


@pytest.mark.parametrize("kind", ASSISTANT_BLOCKS)
async def test_every_assistant_block_is_accepted_in_the_history(app: App, kind: str) -> None:
    for block in ASSISTANT_BLOCKS[kind]:
        turns = [HI, {"role": "assistant", "content": [block, {"type": "text", "text": "so"}]}, HI]
        for path in (PATH, f"{PATH}/count_tokens"):
            status, answer, _ = await answer_of(app, path, messages=turns)
            assert status == 200, (block, answer)


@pytest.mark.parametrize("kind", USER_BLOCKS)
async def test_every_user_block_is_read_or_refused_by_name(app: App, kind: str) -> None:
    for block in USER_BLOCKS[kind]:
        turn = {"role": "user", "content": [{"type": "text", "text": "so"}, block]}
        status, answer, _ = await answer_of(app, messages=[turn])
        if kind in NOT_THE_USERS or (kind in UNSUPPORTED_MEDIA and not is_text(block)):
            assert (status, answer["error"]["param"]) == (400, "messages[0].content[1].type"), block
        else:
            assert status == 200, (block, answer)
        if kind not in NOT_THE_USERS:
            status, answer, _ = await answer_of(
                app, messages=[turn, {"role": "assistant", "content": "a"}, HI]
            )
            assert status == 200, (block, answer)


@pytest.mark.parametrize("kind", SYSTEM_BLOCKS)
async def test_every_system_block_is_read(app: App, kind: str) -> None:
    for block in SYSTEM_BLOCKS[kind]:
        status, answer, _ = await answer_of(app, messages=[HI, {"role": "system", "content": [block]}])
        assert status == 200, (block, answer)


@pytest.mark.parametrize("message", [Message, BetaMessage])
def test_a_message_can_be_sent_back_as_the_sdk_dumps_it(message: Any) -> None:
    assert message.model_fields.keys() <= AnthropicMessage.model_fields.keys()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (OurText, TextBlock),
        (OurText, BetaTextBlock),
        (OurThought, ThinkingBlock),
        (OurThought, BetaThinkingBlock),
        (OurCall, ToolUseBlock),
        (OurCall, BetaToolUseBlock),
    ],
)
def test_blocks_can_be_sent_back_as_the_sdk_dumps_them(ours: Any, theirs: Any) -> None:
    assert theirs.model_fields.keys() <= ours.model_fields.keys()
