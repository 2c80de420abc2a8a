"""A new format of tool calls takes a description beside its parser and one line of the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config import ServerConfig
from engine.errors import ConfigError
from engine.server.model import served_model
from engine.text.parsers.events import ToolEvent
from engine.text.parsers.json_call import JsonCall
from engine.text.parsers.text_scanner import TextScanner
from engine.text.parsers.tool_constraints import DelimitedCalls, quoted
from engine.text.parsers.tool_format import ToolFormat
from engine.text.parsers.tools import TOOL_FORMATS
from engine.text.tokenizer import load_tokenizer
from tests.engine.server.in_process import CHAT, app_in_process

SIGN = "CALL:"
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}
OUTPUT = f'{SIGN}{{"name": "f", "arguments": {{"x": 1}}}}'
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}{# the model writes CALL: #}"


class ScratchParser:
    def __init__(self) -> None:
        self._scanner = TextScanner((SIGN,))
        self._call: JsonCall | None = None

    def feed(self, text: str) -> list[ToolEvent]:
        events: list[ToolEvent] = []
        if self._call is None:
            sign, text = self._scanner.feed(text, events)
            self._call = JsonCall(0, SIGN) if sign else None
        if self._call is not None and not self._call.is_over:
            events += self._call.feed(text)[0]
        return events

    def finish(self) -> list[ToolEvent]:
        if self._call is None:
            return self._scanner.finish(after_call=False)
        return [] if self._call.is_over else self._call.finish()


SCRATCH = ToolFormat(
    names=("scratch", "scratch2"),
    parser=lambda tools: ScratchParser(),
    matches_template=lambda template: SIGN in template,
    constraint=DelimitedCalls(
        begin=lambda name: f'{SIGN}{{"name": {quoted(name)}, "arguments": ',
        end="}",
        separator="",
        trigger=SIGN,
    ),
)


@pytest.mark.parametrize(
    "options",
    [{"tool_call_parser": "scratch2"}, {"chat_template": TEMPLATE}],
    ids=["by the flag", "from the template"],
)
@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_a_format_of_the_registry_works_everywhere(
    options: dict[str, Any], choice: str, fake_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_model, "TOOL_FORMATS", (*TOOL_FORMATS, SCRATCH))
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL], "tool_choice": choice}

    async with app_in_process(fake_model, **options) as app:
        app.will_say(OUTPUT)
        whole = await app.ask(CHAT, **body)
        chunks = await app.stream(CHAT, **body)

    (call,) = whole["choices"][0]["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("f", {"x": 1})
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    pieces = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert json.loads("".join(piece["function"]["arguments"] for piece in pieces)) == {"x": 1}


def test_an_unknown_parser_is_refused_with_the_names_of_all_formats(fake_model: Path) -> None:
    config = ServerConfig(port=0, served_model_names=("fake",), tool_call_parser="nonsense")
    known = "hermes, llama3_json, llama4_json, mistral, qwen3_coder, qwen3_json, qwen3_xml or none"
    with pytest.raises(ConfigError, match=f"--tool-call-parser nonsense is unknown.*{known}"):
        served_model.load_served_model(fake_model, config, load_tokenizer(fake_model))
