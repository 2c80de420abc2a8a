"""Valid request bodies, and the errors for invalid ones."""

from __future__ import annotations

from typing import Any

import pytest

from engine.server.protocol import field_rules
from engine.server.protocol.body_reader import check
from engine.server.protocol.completion_body import CompletionBody
from tests.engine.server.serving import MAX_MODEL_LEN, Running

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]
SURROGATE = "\\ud800"


def post(server: Running, path: str, **body: Any) -> tuple[int, Any]:
    with server.http() as client:
        response = client.post(path, json=body)
    return response.status_code, response.json()


def complete(server: Running, **body: Any) -> Any:
    status, answer = post(server, COMPLETIONS, **{"prompt": "abc", "seed": 1, **body})
    assert status == 200, answer
    return answer


def assert_refused(answer: tuple[int, Any], param: str | None, status: int = 400) -> str:
    assert answer[0] == status, answer
    error = answer[1]["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    message: str = error["message"]
    return message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": MAX_MODEL_LEN + 1}, "max_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"stop": ["a"] * 257}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"request_id": "with space"}, "request_id"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [3, 259]}, "prompt"),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"prompt": ["a"] * 1024, "n": 5}, "n"),
    ],
)
def test_an_invalid_field_is_named(fake_server: Running, body: dict[str, Any], param: str) -> None:
    assert_refused(post(fake_server, COMPLETIONS, **{"prompt": "a", **body}), param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": -2}, "max_completion_tokens"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ],
)
def test_an_invalid_field_of_a_chat_is_named(fake_server: Running, body: dict[str, Any], param: str) -> None:
    assert_refused(post(fake_server, CHAT, **{"messages": MESSAGES, **body}), param)


def test_a_missing_field_is_named(fake_server: Running) -> None:
    assert "required" in assert_refused(post(fake_server, COMPLETIONS), "prompt")
    assert "required" in assert_refused(post(fake_server, CHAT), "messages")


@pytest.mark.parametrize(("path", "rules"), [(COMPLETIONS, field_rules.COMPLETION), (CHAT, field_rules.CHAT)])
def test_an_unsupported_field_is_refused_unless_its_value_is_neutral(
    fake_server: Running, path: str, rules: field_rules.FieldRules
) -> None:
    base: dict[str, Any] = {"prompt": "a"} if path == COMPLETIONS else {"messages": MESSAGES}
    table = rules.refused
    for name in table:
        message = assert_refused(post(fake_server, path, **base, **{name: "something"}), name)
        assert "is not supported" in message
    nothing = {name: values[0] if values else None for name, values in table.items()}
    assert post(fake_server, path, **base, **nothing, max_tokens=1)[0] == 200
    assert post(fake_server, path, **base, **dict.fromkeys(table), max_tokens=1)[0] == 200


def test_null_is_not_given(fake_server: Running) -> None:
    names = [
        "n",
        "max_tokens",
        "min_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "stop",
        "stop_token_ids",
    ]
    names += [
        "stream",
        "stream_options",
        "ignore_eos",
        "skip_special_tokens",
        "echo",
        "user",
        "priority",
        "model",
    ]
    assert complete(fake_server, **dict.fromkeys(names))["usage"]["completion_tokens"] <= 16


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"prompt=a", "application/x-www-form-urlencoded", 415),
        (b'{"prompt": "a", "max_tokens": 1}', "application/json; charset=utf-8", 200),
        (b'{"prompt": "a", "max_tokens": 1}', None, 200),
        (b'{"prompt": "a", "temperature": NaN}', "application/json", 400),
        (b'{"prompt": "' + SURROGATE.encode() + b'"}', "application/json", 400),
    ],
)
def test_a_body_must_be_json(
    fake_server: Running, content: bytes, media_type: str | None, status: int
) -> None:
    headers = {} if media_type is None else {"Content-Type": media_type}
    with fake_server.http() as client:
        response = client.post(COMPLETIONS, content=content, headers=headers)
    assert response.status_code == status, response.text
    assert ("error" in response.json()) == (status != 200)
    assert ("-H 'Content-Type: application/json'" in response.text) == (status == 415)


def test_an_unknown_model_is_404(fake_server: Running) -> None:
    for path, body in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": MESSAGES})):
        answer = post(fake_server, path, model="other", **body)
        assert_refused(answer, "model", 404)
        assert answer[1]["error"]["code"] == "model_not_found"


def test_unknown_routes_and_methods(fake_server: Running) -> None:
    with fake_server.http() as client:
        missing, method = client.get("/v1/nothing"), client.get(COMPLETIONS)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (method.status_code, method.headers["allow"]) == (405, "POST")


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(fake_server: Running) -> None:
    for length in (MAX_MODEL_LEN, MAX_MODEL_LEN + 50):
        answer = post(fake_server, COMPLETIONS, prompt="a" * length)
        message = assert_refused(answer, "prompt")
        assert str(length) in message
        assert str(MAX_MODEL_LEN) in message
        assert answer[1]["error"]["code"] == "context_length_exceeded"
    messages = [{"role": "user", "content": "a" * MAX_MODEL_LEN}]
    assert_refused(post(fake_server, CHAT, messages=messages), "messages")
    assert_refused(post(fake_server, CHAT, messages=messages, max_tokens=5), "messages")


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_chats_limit_of_minus_one_means_no_limit(fake_server: Running, field: str) -> None:
    """As in LM Studio and llama.cpp, whose clients send it by default."""
    chat = {"messages": [{"role": "user", "content": "Hi"}], "seed": 1}
    status, said = post(fake_server, CHAT, **chat, **{field: -1})
    assert (status, said["choices"]) == (200, post(fake_server, CHAT, **chat)[1]["choices"])


def test_a_completion_without_limit_fills_the_context(fake_server: Running) -> None:
    answer = complete(fake_server, prompt="a" * (MAX_MODEL_LEN - 50), max_tokens=-1, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 50
    assert complete(fake_server, max_tokens=None, ignore_eos=True)["usage"]["completion_tokens"] == 16


def test_a_seed_of_minus_one_is_random(fake_server: Running) -> None:
    """As in vLLM and llama.cpp."""
    seeds = {check({"prompt": "a", "seed": seed}, CompletionBody).seed for seed in (-1, None)}
    assert seeds == {None}
    assert complete(fake_server, max_tokens=1, seed=-1, top_k=-1)["usage"]["completion_tokens"] == 1
    assert complete(fake_server, max_tokens=1, top_k=0)["usage"]["completion_tokens"] == 1


def test_prompt_and_max_tokens_beyond_the_context_are_clamped(fake_server: Running) -> None:
    answer = complete(fake_server, prompt="a" * (MAX_MODEL_LEN - 5), max_tokens=100, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"


def test_completions_have_sixteen_tokens_by_default(fake_server: Running) -> None:
    assert complete(fake_server, ignore_eos=True)["usage"]["completion_tokens"] == 16


def test_echo(fake_server: Running) -> None:
    plain = complete(fake_server)["choices"][0]["text"]
    assert complete(fake_server, echo=True)["choices"][0]["text"] == "abc" + plain
    assert complete(fake_server, echo=True, prompt=[3, 4, 5])["choices"][0]["text"] == "abc" + plain
    nothing = complete(fake_server, echo=True, max_tokens=0)
    assert nothing["choices"][0]["text"] == "abc"
    assert nothing["choices"][0]["finish_reason"] == "length"
    assert nothing["usage"]["completion_tokens"] == 0


def test_echo_is_not_searched_for_stop_strings(fake_server: Running) -> None:
    assert complete(fake_server, echo=True, stop="b", max_tokens=1)["choices"][0]["text"].startswith("abc")


def test_stop_strings(fake_server: Running) -> None:
    whole = complete(fake_server, max_tokens=60, ignore_eos=True)["choices"][0]["text"]
    stop = next(whole[at : at + 2] for at in range(5, 50) if whole[at : at + 2].isascii())
    answer = complete(fake_server, max_tokens=60, ignore_eos=True, stop=["never", stop])
    [choice] = answer["choices"]
    assert choice["text"] == whole[: whole.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert 0 < answer["usage"]["completion_tokens"] < 60
    shown = complete(fake_server, max_tokens=60, ignore_eos=True, stop=stop, include_stop_str_in_output=True)
    assert shown["choices"][0]["text"] == choice["text"] + stop
    fake_server.wait_idle()


def test_stop_tokens(fake_server: Running) -> None:
    """Token 4 is "b": it ends the output, counts, is the stop_reason, and is shown only on request."""
    answer = complete(fake_server, max_tokens=190, ignore_eos=True, stop_token_ids=[4])
    [choice] = answer["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", 4)
    assert "b" not in choice["text"]
    shown = complete(
        fake_server, max_tokens=190, ignore_eos=True, stop_token_ids=[4], include_stop_str_in_output=True
    )
    assert shown["choices"][0]["text"] == choice["text"] + "b"
    assert shown["usage"] == {
        **answer["usage"],
        "prompt_tokens_details": shown["usage"]["prompt_tokens_details"],
    }


def test_the_end_of_sequence_has_no_stop_reason(fake_server: Running) -> None:
    answers = [complete(fake_server, seed=seed, max_tokens=190) for seed in range(4)]
    ended = [answer for answer in answers if answer["choices"][0]["finish_reason"] == "stop"]
    assert ended
    for answer in ended:
        assert answer["choices"][0]["stop_reason"] is None
        assert "<eos>" not in answer["choices"][0]["text"]
        kept = complete(fake_server, seed=1, max_tokens=190, ignore_eos=True)
        assert kept["choices"][0]["finish_reason"] == "length"


def test_min_tokens(fake_server: Running) -> None:
    answer = complete(fake_server, min_tokens=30, max_tokens=190, stop=list("abcd"))
    assert answer["usage"]["completion_tokens"] > 30


def test_skip_special_tokens(fake_server: Running) -> None:
    shown = complete(fake_server, max_tokens=190, ignore_eos=True, skip_special_tokens=False)["choices"][0][
        "text"
    ]
    hidden = complete(fake_server, max_tokens=190, ignore_eos=True)["choices"][0]["text"]
    assert "<s>" in shown
    for name in ("<s>", "<eos>", "<pad>"):
        assert name not in hidden


def test_request_ids(fake_server: Running) -> None:
    with fake_server.http() as client:
        body = {"prompt": "a", "max_tokens": 1}
        by_header = client.post(
            COMPLETIONS, json={**body, "request_id": "mine"}, headers={"X-Request-Id": "hers"}
        )
        by_body = client.post(COMPLETIONS, json={**body, "request_id": "mine"})
        made = client.post(COMPLETIONS, json=body)
        unfit = client.post(COMPLETIONS, json=body, headers={"X-Request-Id": "a b"})
        error = client.post(COMPLETIONS, json={}, headers={"X-Request-Id": "hers"})
    assert (by_header.json()["id"], by_header.headers["x-request-id"]) == ("cmpl-hers", "hers")
    assert by_body.json()["id"] == "cmpl-mine"
    assert made.json()["id"] == f"cmpl-{made.headers['x-request-id']}"
    assert unfit.headers["x-request-id"] != "a b"
    assert error.headers["x-request-id"] == "hers"


def test_content_parts_and_assistant_messages_are_accepted(fake_server: Running) -> None:
    """Assistant messages may be sent back unchanged, and text may be split into parts."""
    first = post(fake_server, CHAT, messages=MESSAGES, seed=1, max_tokens=5)[1]["choices"][0]["message"]
    parts = [{"type": "text", "text": "Hi"}]
    usages = [
        post(fake_server, CHAT, messages=[{"role": "user", "content": content}, first], max_tokens=1)[1][
            "usage"
        ]
        for content in ("Hi", parts)
    ]
    assert usages[0]["prompt_tokens"] == usages[1]["prompt_tokens"]


def test_sampling_defaults_of_the_checkpoint(fake_server: Running) -> None:
    """The fake runner ignores temperature, so the engine's input is checked."""
    from engine.server.generation.sampling_params import TokenConstraints, make_sampling_params
    from engine.server.protocol.completion_body import CompletionBody

    defaults = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    body = CompletionBody.model_validate({"prompt": "a", "top_p": 0.5})
    token_constraints = TokenConstraints({}, None, ())
    params = make_sampling_params(
        body, defaults, token_constraints, max_tokens=5, seed=-1, prompt_logprobs=None
    )
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.6, 20, 0.5, 0.0)
    assert params.seed >= 0
