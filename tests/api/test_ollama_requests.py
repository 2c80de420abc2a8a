"""Ollama's requests as OpenAI's: options, messages, images, tools, formats, thinking; pure adapters."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.protocols.app import ProtocolApp
from api.protocols.ollama import ollama_adapters
from api.protocols.ollama.names import candidates, plain, tagged
from api.protocols.ollama.requests import EmbedRequest, OllamaChatRequest, OllamaGenerateRequest
from api.protocols.ollama.served_models import ServedModel
from tests.api.protocol_apps import SSE, Got, Inner, ask, chat_answer, chat_stream

USER = [{"role": "user", "content": "Hello"}]


class Models:
    """`demo`, on an engine with vLLM's fields; `llama`, on one with llama.cpp's."""

    def find(self, name: str) -> ServedModel | None:
        known = {"demo": ServedModel("demo", False, None), "llama": ServedModel("llama")}
        return next((known[one] for one in candidates(name) if one in known), None)

    def can_think(self, name: str) -> bool | None:
        return False if name == "demo" else None

    def context_length(self, name: str) -> int | None:
        return 2048


def app_around(inner: Inner) -> ProtocolApp:
    return ProtocolApp(inner, ollama_adapters(Models()), protocol_of=lambda _: None, default_model="none")


async def translated(path: str, **fields: Any) -> tuple[dict[str, Any], Got, Inner]:
    """The body that the engine gets; without what every request has."""
    inner = Inner(chat_stream("Hi"), headers=[SSE])
    got = await ask(app_around(inner), path, {"model": "demo", "stream": False, **fields})
    assert got.status == 200, got.body
    asked = dict(inner.asked)
    assert asked.pop("stream") is True
    assert asked.pop("stream_options") == {"include_usage": True}
    return asked, got, inner


async def refusal(path: str = "/api/chat", **fields: Any) -> tuple[int, str]:
    """Status and message; no request reaches the engine."""
    inner = Inner([chat_answer()])
    asked = {"messages": USER} if path == "/api/chat" else {}
    got = await ask(app_around(inner), path, {"model": "demo", **asked, **fields})
    assert inner.scopes == []
    assert got.json.keys() == {"error"}
    return got.status, got.json["error"]


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("a", ["a"]),
        ("a:latest", ["a:latest", "a"]),
        ("a:Q4_K_M", ["a:Q4_K_M"]),
        ("hf.co/o/a:Q4", ["hf.co/o/a:Q4", "o/a:Q4"]),
        ("huggingface.co/o/a:latest", ["huggingface.co/o/a:latest", "o/a:latest", "o/a"]),
    ],
)
def test_the_names_that_a_client_may_mean(name: str, names: list[str]) -> None:
    assert list(candidates(name)) == names
    assert plain(name) == names[-1]


def test_a_quantisation_may_be_written_in_any_case() -> None:
    assert list(candidates("hf.co/o/a:q4_K_m")) == ["hf.co/o/a:q4_K_m", "o/a:q4_K_m", "o/a:Q4_K_M"]
    assert plain("hf.co/o/a:q4_K_m") == "o/a:q4_K_m"


def test_names_are_listed_with_a_tag() -> None:
    assert [tagged(name) for name in ("a", "o/a", "a:Q4_K_M", "h:1/a")] == [
        "a:latest", "o/a:latest", "a:Q4_K_M", "h:1/a:latest",
    ]  # fmt: skip


# Options.


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"num_predict": 5, "seed": 3}, {"max_tokens": 5, "seed": 3}),
        ({"top_k": 7, "stop": ["x"]}, {"top_k": 7, "stop": ["x"]}),
        ({"num_predict": -1, "seed": -1, "stop": [], "top_k": -5}, {"top_k": -1}),
        ({"num_predict": 64.0, "stop": "x"}, {"max_tokens": 64, "stop": ["x"]}),
        ({"num_predict": -2}, {}),
        ({"temperature": 0, "top_p": 0.9, "min_p": 0.1}, {"temperature": 0, "top_p": 0.9, "min_p": 0.1}),
        ({"presence_penalty": 1}, {"presence_penalty": 1}),
        ({"frequency_penalty": 0.5}, {"frequency_penalty": 0.5}),
        ({"repeat_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"repeat_penalty": 1.2, "repeat_last_n": -1}, {"repetition_penalty": 1.2}),
        ({"repeat_penalty": 1.2, "repeat_last_n": 0, "presence_penalty": 1}, {}),
        ({"temperature": None, "unknown": None}, {}),
    ],
)  # fmt: skip
async def test_options_become_the_engines_fields(options: Any, fields: Any) -> None:
    asked, got, _ = await translated("/api/chat", messages=USER, options=options)
    assert asked == {"model": "demo", "messages": USER, **fields}
    assert got.header(b"warning") is None


NO_EFFECT = {
    "typical_p": 1.0, "tfs_z": 1.0, "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1,
    "repeat_last_n": 64, "repeat_penalty": 1.0, "penalize_newline": True, "num_keep": 4, "num_batch": 512,
    "num_gpu": -1, "main_gpu": 0, "num_thread": 8, "low_vram": False, "use_mmap": True, "use_mlock": False,
    "numa": False, "f16_kv": True, "logits_all": False, "vocab_only": False, "num_ctx": 2048,
}  # fmt: skip


async def test_defaults_without_effect_are_accepted() -> None:
    asked, got, _ = await translated("/api/chat", messages=USER, options=NO_EFFECT)
    assert asked == {"model": "demo", "messages": USER, "repetition_penalty": 1.0}
    assert got.header(b"warning") is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"typical_p": 0.7}, "typical_p"),
        ({"mirostat": 1}, "mirostat"),
        ({"tfs_z": 0.5}, "tfs_z"),
        ({"repeat_penalty": 1.1, "repeat_last_n": 33}, "repeat_last_n"),
        ({"repeat_penalty": 1.1, "penalize_newline": False}, "penalize_newline"),
        ({"num_predict": "5"}, "num_predict"),
        ({"num_predict": 1.5}, "num_predict"),
        ({"temperature": True}, "temperature"),
        ({"use_mmap": 1}, "use_mmap"),
        ({"stop": [1]}, "stop"),
    ],
)
async def test_an_option_that_would_change_the_answer_is_refused_by_name(options: Any, named: str) -> None:
    status, message = await refusal(options=options)
    assert status == 400
    assert named in message


async def test_what_has_no_effect_on_an_answer_is_named_in_a_warning() -> None:
    options = {"num_ctx": 9999, "mood": 1, "repeat_penalty": 1.1, "repeat_last_n": 64}
    messages = [{**USER[0], "mood": "sad"}]
    asked, got, _ = await translated("/api/chat", messages=messages, options=options)
    assert asked["repetition_penalty"] == 1.1
    assert asked["messages"] == USER
    warning = (got.header(b"warning") or b"").decode()
    for named in (
        "options.num_ctx (the model is served with 2048",
        "options.mood",
        "repeat_last_n",
        "messages[].mood",
    ):
        assert named in warning


async def test_llama_cpps_fields_go_to_engines_that_know_them() -> None:
    options = {"typical_p": 0.7, "mirostat": 2, "mirostat_tau": 4, "repeat_penalty": 1.1, "repeat_last_n": 33}
    asked, _, _ = await translated("/api/chat", model="llama", messages=USER, options=options)
    assert asked == {"model": "llama", "messages": USER, **options}


# Other fields.


async def test_formats() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    for asked_for, wanted in (
        ("json", {"type": "json_object"}),
        (schema, {"type": "json_schema", "json_schema": {"name": "format", "schema": schema}}),
    ):
        asked, _, _ = await translated("/api/generate", prompt="a", format=asked_for)
        assert asked["response_format"] == wanted
    for empty in ("", None):
        asked, _, _ = await translated("/api/generate", prompt="a", format=empty)
        assert "response_format" not in asked
    assert await refusal(format="yaml") == (400, "format: expected \"json\" or a JSON schema, not 'yaml'")


async def test_thinking() -> None:
    asked, _, _ = await translated("/api/chat", model="llama", messages=USER, think=True)
    assert asked["chat_template_kwargs"] == {"enable_thinking": True, "thinking": True}
    assert "reasoning_effort" not in asked
    asked, _, _ = await translated("/api/chat", model="llama", messages=USER, think="high")
    assert (asked["reasoning_effort"], asked["chat_template_kwargs"]["enable_thinking"]) == ("high", True)
    asked, _, _ = await translated("/api/chat", messages=USER, think=False)
    assert asked["chat_template_kwargs"]["enable_thinking"] is False
    assert await refusal(think=True) == (400, '"demo" does not support thinking')
    status, message = await refusal(think="deep")
    assert (status, "'deep'" in message) == (400, True)


async def test_images_become_data_urls_of_their_type() -> None:
    images = ["iVBORw0KGgo", "/9j/4AAQ", "R0lGOD", "UklGRg", "data:image/x;base64,AA"]
    asked, _, _ = await translated("/api/chat", messages=[{**USER[0], "images": images}])
    first, *others = asked["messages"][0]["content"]
    assert first == {"type": "text", "text": "Hello"}
    assert [part["image_url"]["url"] for part in others] == [
        "data:image/png;base64,iVBORw0KGgo",
        "data:image/jpeg;base64,/9j/4AAQ",
        "data:image/gif;base64,R0lGOD",
        "data:image/webp;base64,UklGRg",
        "data:image/x;base64,AA",
    ]
    asked, _, _ = await translated("/api/generate", prompt="What?", images=images[:1])
    assert [part["type"] for part in asked["messages"][0]["content"]] == ["text", "image_url"]


def called(name: str, **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": {"city": "Ålesund"}}, **more}


async def test_results_of_tools_belong_to_their_calls() -> None:
    calls = [called("a"), called("b"), called("a", id="x")]
    messages = [
        {"role": "System", "content": "Be brief."},
        *USER,
        {"role": "assistant", "thinking": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_name": "b", "content": "B"},
        {"role": "tool", "name": "a", "content": "A"},
        {"role": "tool", "tool_call_id": "x", "content": "X"},
        {"role": "assistant", "tool_calls": [called("c")]},
        {"role": "tool", "content": "C"},
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "a", "parameters": {"type": "object"}}}]
    asked, _, _ = await translated("/api/chat", messages=messages, tools=tools)
    sent = asked["messages"]
    assert sent[0] == {"role": "system", "content": "Be brief."}
    assert sent[2]["reasoning_content"] == "Hm."
    assert [call["id"] for call in sent[2]["tool_calls"]] == ["call_0", "call_1", "x"]
    assert json.loads(sent[2]["tool_calls"][0]["function"]["arguments"]) == {"city": "Ålesund"}
    results = [
        (one["tool_call_id"], one.get("name"), one["content"]) for one in sent if one["role"] == "tool"
    ]
    assert results == [("call_1", "b", "B"), ("call_0", "a", "A"), ("x", None, "X"), ("call_3", None, "C")]
    assert asked["tools"] == tools


async def test_log_probabilities_are_asked_for() -> None:
    asked, _, _ = await translated("/api/chat", messages=USER, logprobs=True, top_logprobs=3)
    assert (asked["logprobs"], asked["top_logprobs"]) == (True, 3)
    asked, _, _ = await translated("/api/generate", prompt="a", raw=True, logprobs=True, top_logprobs=3)
    assert (asked["logprobs"], "top_logprobs" in asked) == (3, False)
    status, message = await refusal(top_logprobs=21)
    assert (status, "top_logprobs" in message) == (400, True)


# /api/generate.


async def test_a_prompt_is_a_chat_with_a_system_message() -> None:
    asked, _, inner = await translated("/api/generate", prompt="Hello", system="Be brief.", keep_alive="5m")
    assert inner.scopes[0]["path"] == "/v1/chat/completions"
    assert asked["messages"] == [{"role": "system", "content": "Be brief."}, *USER]
    assert asked["keep_alive"] == "5m"


async def test_a_raw_prompt_is_completed_without_a_limit_of_its_own() -> None:
    asked, _, inner = await translated("/api/generate", prompt="Once", raw=True, think=False)
    assert inner.scopes[0]["path"] == "/v1/completions"
    assert asked == {"model": "demo", "prompt": "Once", "max_tokens": None}
    asked, _, _ = await translated("/api/generate", model="llama", prompt="Once", raw=True)
    assert asked["max_tokens"] == -1
    asked, _, _ = await translated("/api/generate", prompt="Once", suffix="end", options={"num_predict": 4})
    assert (asked["suffix"], asked["max_tokens"]) == ("end", 4)


@pytest.mark.parametrize(
    "fields",
    [
        {"template": "{{ .Prompt }}"},
        {"context": [1, 2]},
        {"raw": True, "system": "a"},
        {"raw": True, "images": ["AA"]},
        {"_debug_render_only": True},
        {"n": 2},
        {"prompt": 5},
        {"images": [5]},
    ],
)
async def test_what_generate_cannot_do_is_refused_by_name(fields: dict[str, Any]) -> None:
    status, message = await refusal("/api/generate", **{"prompt": "a", **fields})
    assert status == 400
    assert next(name for name in fields if name in message)


async def test_empty_values_of_unsupported_fields_are_accepted() -> None:
    empty: dict[str, Any] = {
        "template": "",
        "context": [],
        "suffix": "",
        "images": None,
        "raw": False,
        "system": "",
        "format": "",
    }
    asked, _, _ = await translated(
        "/api/generate", prompt="Hello", truncate=True, shift=True, width=0, **empty
    )
    assert asked == {"model": "demo", "messages": USER}


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed", "/api/embeddings"])
async def test_a_model_that_is_not_there(path: str) -> None:
    assert await refusal(path, model="nobody:7b") == (404, "model 'nobody:7b' not found")
    for empty in (None, ""):
        assert await refusal(path, model=empty) == (400, "model is required")
    inner = Inner()
    got = await ask(app_around(inner), path, b"{")
    assert (got.status, got.json.keys()) == (400, {"error"})
    got = await ask(app_around(inner), path, method="GET")
    assert (got.status, got.json.keys(), got.header(b"allow")) == (405, {"error"}, b"POST")


# Embeddings.


def embedded(*vectors: list[float]) -> bytes:
    data = [{"index": index, "embedding": vector} for index, vector in reversed([*enumerate(vectors)])]
    return json.dumps({"data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}}).encode()


async def test_embeddings_are_normalised_and_in_order() -> None:
    inner = Inner([embedded([3, 4, 0], [0, 0, 1])])
    got = await ask(
        app_around(inner), "/api/embed", {"model": "demo:latest", "input": ["a", "b"], "stream": True}
    )
    assert got.json["model"] == "demo:latest"
    assert got.json["embeddings"] == [[0.6, 0.8, 0], [0, 0, 1]]
    assert got.json["prompt_eval_count"] == 7
    assert got.json["total_duration"] > 0 and got.json["load_duration"] >= 0
    assert inner.asked == {
        "model": "demo",
        "input": ["a", "b"],
        "encoding_format": "float",
        "truncate_prompt_tokens": -1,
    }


async def test_a_shorter_embedding_is_normalised_again() -> None:
    inner = Inner([embedded([3, 4, 12])])
    fields = {"model": "demo", "input": "a", "dimensions": 2, "truncate": False}
    got = await ask(app_around(inner), "/api/embed", fields)
    assert got.json["embeddings"] == [[0.6, 0.8]]
    assert "truncate_prompt_tokens" not in inner.asked and "dimensions" not in inner.asked


async def test_the_older_route_gives_one_vector_as_it_is() -> None:
    inner = Inner([embedded([3, 4])])
    got = await ask(
        app_around(inner), "/api/embeddings", {"model": "demo", "prompt": "a", "options": {"x": 1}}
    )
    assert got.json == {"embedding": [3, 4]}
    assert inner.asked["input"] == ["a"]


@pytest.mark.parametrize("wrong", [5, [1, 2], ["a", 1], {"a": 1}])
async def test_only_texts_are_embedded(wrong: Any) -> None:
    assert await refusal("/api/embed", input=wrong) == (400, "invalid input type")


# Anything at all.

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
OPTIONS = st.dictionaries(st.sampled_from([*NO_EFFECT, "num_predict", "stop", "seed", "top_k"]), JSON_VALUES)
FIELDS = sorted(
    {*OllamaChatRequest.model_fields, *OllamaGenerateRequest.model_fields, *EmbedRequest.model_fields}
    - {"debug_render_only"}
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["/api/chat", "/api/generate", "/api/embed", "/api/embeddings"]),
    st.dictionaries(st.sampled_from([*FIELDS, "other"]), JSON_VALUES, max_size=4),
    OPTIONS,
    st.lists(
        st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "images"]), JSON_VALUES), max_size=2
    ),
)
def test_every_request_is_served_or_refused(path: str, fields: Any, options: Any, messages: Any) -> None:
    """Never a failure of the adapter."""
    asked = {"messages": messages or USER} if path == "/api/chat" else {"prompt": "a", "input": "a"}
    body = {"model": "demo", "options": options, **asked, **fields}
    is_text = path in ("/api/chat", "/api/generate")
    inner = Inner(chat_stream("Hi"), headers=[SSE]) if is_text else Inner([embedded([1.0])])

    async def load(*_: Any) -> bool:
        return True

    adapters = ollama_adapters(Models())
    app = ProtocolApp(inner, adapters, protocol_of=lambda _: None, default_model="none", loads=load)
    got = asyncio.run(ask(app, path, body))
    assert got.status in (200, 400, 404), got.body
