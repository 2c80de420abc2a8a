"""Chats, and what is translated to chats, with an engine that speaks completions alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.api.test_gateway import berth_with
from tests.api.test_messages_translated import seen
from tests.berth_process import BerthProcess
from tests.chat_engine import command

CHAT: Any = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]},
    {"role": "assistant", "content": "Three"},
    {"role": "user", "content": "Four"},
]
PROMPT = "Be kind.\n\nUser: One\ntwo\nAssistant: Three\nUser: Four\nAssistant:"


@pytest.fixture(scope="module")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    models = {"base": {"command": command("--path", "/v1/completions")}}
    with berth_with(tmp_path_factory.mktemp("completions"), models) as berth:
        yield berth


@pytest.fixture
def client(berth: BerthProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="k", base_url=f"{berth.url}/v1", max_retries=0, timeout=30) as client:
        yield client


def test_a_chat_is_a_transcript_for_the_engine(client: openai.OpenAI, berth: BerthProcess) -> None:
    got = client.chat.completions.create(
        model="base", messages=CHAT, max_completion_tokens=9, stop="END", reasoning_effort="low"
    )
    [choice] = got.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        "completion",
        "stop",
    )
    assert got.object == "chat.completion" and got.usage and got.usage.prompt_tokens == 11
    body = seen(berth)["body"]
    assert (body["prompt"], body["stop"], body["max_tokens"]) == (PROMPT, ["END", "\nUser:"], 9)
    assert "messages" not in body and "reasoning_effort" not in body


def test_a_stream_is_a_chats(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    with client.chat.completions.stream(model="base", messages=CHAT, stream_options=options) as stream:
        got = stream.get_final_completion()
    assert (got.choices[0].message.content, got.choices[0].message.role) == ("completion", "assistant")
    assert got.usage and got.usage.completion_tokens == 4


def test_the_beginning_of_an_answer_is_continued(berth: BerthProcess) -> None:
    begun = {"messages": [*CHAT, {"role": "assistant", "content": "Fi"}], "continue_final_message": True}
    with berth.client() as http:
        assert http.post("/v1/chat/completions", json={"model": "base", **begun}).status_code == 200
    assert seen(berth)["body"]["prompt"] == f"{PROMPT} Fi"


def test_messages_and_responses_go_through_both_translations(
    client: openai.OpenAI, berth: BerthProcess
) -> None:
    response = client.responses.create(model="base", input="Four", instructions="Be kind.")
    assert (response.output_text, response.status) == ("completion", "completed")
    assert seen(berth)["body"]["prompt"] == "Be kind.\n\nUser: Four\nAssistant:"
    with (
        anthropic.Anthropic(api_key="k", base_url=berth.url, max_retries=0) as other,
        other.messages.stream(
            model="base", max_tokens=9, messages=[{"role": "user", "content": "Four"}]
        ) as stream,
    ):
        message = stream.get_final_message()
    assert (message.content[0].text, message.stop_reason) == ("completion", "end_turn")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a"}}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "c"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ],
)
def test_what_needs_a_chat_engine_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        body = {"model": "base", "messages": CHAT, **fields}
        client.post("/chat/completions", body=body, cast_to=httpx.Response)
    assert caught.value.param == named
