"""How the options of Anthropic requests reach the model: tools, reasoning, effort, rejecting templates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import InvalidRequest
from engine.server.messages.translate import ReasoningSupport, to_chat
from tests.engine.server.in_process import App, app_in_process
from tests.engine.server.serving import write_fake_model
from tests.engine.server.test_messages_history import HI, assistant, body_of, system

TOOL: Any = {"name": "look", "input_schema": {"type": "object"}}


def names_of(*messages: Any, **fields: Any) -> list[str]:
    chat = to_chat(body_of(*messages, **fields), ReasoningSupport())
    return [tool.function.name for tool in chat.tools or []]


def test_system_turns_add_and_remove_tools() -> None:
    added = {
        "type": "tool_addition",
        "tool": {"type": "tool_definition", "definition": {**TOOL, "name": "new"}},
    }
    gone = {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "look"}}
    back = {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "look"}}
    assert names_of(HI, tools=[TOOL]) == ["look"]
    assert names_of(HI, system([added]), tools=[TOOL]) == ["look", "new"]
    assert names_of(HI, system([gone]), tools=[TOOL]) == []
    assert names_of(HI, system([gone, added, back]), tools=[TOOL]) == ["new", "look"]
    compacted = assistant({"type": "compaction", "content": "c", "tool_changes": [added, gone]})
    assert names_of(compacted, HI, tools=[TOOL]) == ["new"]


def test_an_invalid_tool_definition_in_a_turn_is_named() -> None:
    wrong = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": {"name": "new"}}}
    with pytest.raises(InvalidRequest) as error:
        names_of(HI, system([wrong]))
    assert error.value.param == "messages[1].content[0].tool.definition.input_schema"


def test_examples_of_a_tools_input_are_shown() -> None:
    described = {**TOOL, "description": "Looks.", "input_examples": [{"at": 1}, {"at": 2}]}
    chat = to_chat(body_of(HI, tools=[described]), ReasoningSupport())
    [tool] = chat.tools or []
    assert tool.function.description == 'Looks.\n\nExamples of its input:\n{"at": 1}\n{"at": 2}'


@pytest.mark.parametrize(
    ("thinking", "thinks", "budget"),
    [
        (None, False, None),
        ({"type": "disabled"}, False, None),
        ({"type": "between_tools"}, False, None),
        ({"type": "adaptive", "display": "omitted"}, True, None),
        ({"type": "enabled", "budget_tokens": 1024, "display": "summarized"}, True, 1024),
    ],
)
def test_reasoning_follows_the_thinking_setting(thinking: Any, thinks: bool, budget: int | None) -> None:
    chat = to_chat(body_of(HI, thinking=thinking), ReasoningSupport())
    assert chat.chat_template_kwargs == {"enable_thinking": thinks}
    assert chat.thinking_token_budget == budget


def test_the_last_effort_applies() -> None:
    config = {"effort": "high"}
    later = {"role": "system", "output_config": {"effort": "low"}}
    assert to_chat(body_of(HI, output_config=config), ReasoningSupport()).reasoning_effort == "high"
    assert to_chat(body_of(HI, later, HI, output_config=config), ReasoningSupport()).reasoning_effort == "low"


# Templates that reject some options

STRICT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' and not loop.first %}{{ raise_exception('misplaced') }}{% endif %}"
    "{% if reasoning_effort is defined and reasoning_effort not in ('none', 'high') %}"
    "{{ raise_exception('no such effort') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>{{ reasoning_effort }}"
)


@pytest.fixture(scope="module")
async def strict_app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    directory: Path = write_fake_model(tmp_path_factory.mktemp("strict"), chat_template=STRICT_TEMPLATE)
    async with app_in_process(directory) as app:
        app.will_say("Hello")
        yield app


@pytest.mark.parametrize("messages", [[HI], [HI, {"role": "assistant", "content": "a"}, system("now"), HI]])
@pytest.mark.parametrize("effort", ["medium", "high", None])
async def test_an_effort_that_the_template_rejects_is_dropped(
    strict_app: App, messages: Any, effort: str | None
) -> None:
    body = {"messages": messages, "output_config": {"effort": effort}}
    message = await strict_app.ask("/v1/messages", max_tokens=5, **body)
    counted = await strict_app.ask("/v1/messages/count_tokens", **body)
    is_folded = len(messages) > 1
    folded = "<assistant>a<user><system-reminder>\nnow\n</system-reminder>\nHi"
    prompt = "<user>Hi" + folded * is_folded
    prompt += "<assistant>" + ("high" if effort == "high" else "")
    assert message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"] == len(prompt)
    assert counted["input_tokens"] == len(prompt)


async def test_a_conversation_that_the_template_always_rejects_is_refused(strict_app: App) -> None:
    status, answer = await strict_app.post(
        "/v1/messages", max_tokens=5, messages=[HI], chat_template_kwargs={"reasoning_effort": "odd"}
    )
    assert (status, answer["error"]["param"]) == (400, "messages")
    assert "no such effort" in answer["error"]["message"]


async def test_a_reasoning_budget_is_ignored_without_a_reasoning_parser(strict_app: App) -> None:
    thinking = {"type": "enabled", "budget_tokens": 31999}
    await strict_app.ask("/v1/messages", max_tokens=5, messages=[HI], thinking=thinking)
