"""The chat template and the tokenizer, through transformers and through plain `tokenizers`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from training.corpus import documents
from training.heldout import WEATHER
from training.tokenizer import MARKUP, SPECIAL, TEMPLATE_PATH, Renderer

DEMO = Path(__file__).parents[2] / "models" / "berth-demo"
HELLO = {"role": "user", "content": "Hello"}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO)


def render(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


def test_the_shipped_template_is_the_trained_one() -> None:
    assert (DEMO / "chat_template.jinja").read_text() == TEMPLATE_PATH.read_text()


def test_a_plain_question(tokenizer: Any) -> None:
    text = render(tokenizer, [HELLO], add_generation_prompt=True)
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_several_turns_with_a_system_message(tokenizer: Any) -> None:
    chat = [{"role": "system", "content": "Be brief."}, HELLO, {"role": "assistant", "content": "Hi"}, HELLO]
    assert render(tokenizer, chat) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    )


def test_content_in_parts(tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert render(tokenizer, [{"role": "user", "content": parts}]) == render(tokenizer, [HELLO])


def test_tools_are_listed_in_the_system_message(tokenizer: Any) -> None:
    text = render(tokenizer, [{"role": "system", "content": "Be brief."}, HELLO], tools=[WEATHER])
    head, _, rest = text.partition("<tools>\n")
    assert head == "<|im_start|>system\nBe brief.\n\nTools:\n"
    assert rest.startswith('{"type": "function", "function": {"name": "get_weather", ')
    assert '<tool_call>\n{"name": ' in rest
    assert text.count("<|im_start|>system") == 1


@pytest.mark.parametrize("arguments", [{"city": "Zürich"}, '{"city": "Zürich"}'])
@pytest.mark.parametrize("content", ["", None])
def test_a_call_and_its_results(tokenizer: Any, arguments: object, content: str | None) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    chat: list[dict[str, Any]] = [
        HELLO,
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
        {"role": "tool", "content": "rainy"},
    ]
    assert render(tokenizer, chat, add_generation_prompt=True).partition("Hello<|im_end|>\n")[2] == (
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}'
        "\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrainy\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_two_calls_stand_on_lines_of_their_own(tokenizer: Any) -> None:
    text = render(tokenizer, [HELLO, {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}])
    assert "</tool_call>\n<tool_call>" in text


def test_thinking_is_asked_for_and_not_repeated(tokenizer: Any) -> None:
    past = {"role": "assistant", "content": "Hi", "reasoning_content": "A greeting."}
    text = render(tokenizer, [HELLO, past, HELLO], enable_thinking=True)
    assert text.startswith("<|im_start|>system\nThink first.<|im_end|>\n")
    assert "A greeting." not in text
    assert "Think" not in render(tokenizer, [HELLO], enable_thinking=False)


def test_training_renders_like_transformers(tokenizer: Any) -> None:
    renderer = Renderer()
    for document in islice(documents(seed=9), 400):
        if document.messages:
            chat, tools = list(document.messages), list(document.tools) or None
            expected = render(tokenizer, chat, tools=tools, enable_thinking=document.thinking)
            assert renderer.document(document) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Grüße aus Łódź, 你好, 😀 naïve café",
        "a  b\n\n\tc \n",
        " leading",
        "12345 + 67",
        "<tool_call>\n{}</tool_call>",
    ],
)
def test_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    plain = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    ids = plain.encode(text).ids
    assert plain.decode(ids, skip_special_tokens=False) == text
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_digits_and_added_tokens_stay_single(tokenizer: Any) -> None:
    plain = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    assert plain.encode("4096").tokens == ["4", "0", "9", "6"]
    for token in (*SPECIAL, *MARKUP):
        assert plain.encode(token).ids == [plain.token_to_id(token)]
    assert set(tokenizer.all_special_tokens) <= set(SPECIAL)
    assert tokenizer.eos_token == "<|im_end|>"
