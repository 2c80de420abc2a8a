"""`logprob_token_ids`: logprobs of the tokens that a request names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.server.serving import Running

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MODEL = Path(__file__).resolve().parents[3] / "models" / "berth-demo"
MESSAGES = [{"role": "user", "content": "Hello"}]
NAMED = [300, 7, 41]
AS_IDS = {"return_tokens_as_token_ids": True, "return_token_ids": True, "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


def expected(reference: Any, prompt: list[int], output: list[int]) -> list[dict[str, float]]:
    """For each output position: logprobs of the named tokens and of its own."""
    with torch.inference_mode():
        logits = reference(torch.tensor([prompt + output])).logits[0]
    rows = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return [
        {f"token_id:{named}": float(row[named]) for named in (token, *NAMED)}
        for row, token in zip(rows, output, strict=True)
    ]


def ask(server: Running, path: str, **body: Any) -> dict[str, Any]:
    with server.http() as client:
        response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_completion_has_the_named_logprobs(demo_server: Running, reference: Any) -> None:
    answer = ask(demo_server, COMPLETIONS, prompt="Hello", logprobs=2, logprob_token_ids=NAMED, **AS_IDS)
    choice = answer["choices"][0]
    logprobs = choice["logprobs"]["top_logprobs"]
    rows = expected(reference, choice["prompt_token_ids"], choice["token_ids"])
    for row, values in zip(logprobs, rows, strict=True):
        assert row == pytest.approx(values, abs=1e-4)


def test_a_chat_has_the_sampled_token_and_the_named_ones_in_order(
    demo_server: Running, reference: Any
) -> None:
    body = {"messages": MESSAGES, "logprobs": True, "logprob_token_ids": NAMED, **AS_IDS}
    answer = ask(demo_server, CHAT, **body)
    choice = answer["choices"][0]
    rows = expected(reference, answer["prompt_token_ids"], choice["token_ids"])
    logprobs = [
        {one["token"]: one["logprob"] for one in entry["top_logprobs"]}
        for entry in choice["logprobs"]["content"]
    ]
    assert [list(row) for row in logprobs] == [list(row) for row in rows]
    for row, values in zip(logprobs, rows, strict=True):
        assert row == pytest.approx(values, abs=1e-4)


def test_an_echoed_prompt_keeps_its_top_logprobs(demo_server: Running) -> None:
    body = {"prompt": "Hello there", "echo": True, "logprobs": 2, "logprob_token_ids": NAMED, **AS_IDS}
    choice = ask(demo_server, COMPLETIONS, **body)["choices"][0]
    tops = choice["logprobs"]["top_logprobs"]
    num_prompt = len(choice["prompt_token_ids"])
    assert all(2 <= len(top) <= 3 for top in tops[1:num_prompt])
    assert all({f"token_id:{token}" for token in NAMED} <= set(top) for top in tops[num_prompt:])


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (COMPLETIONS, {"logprob_token_ids": NAMED}),
        (COMPLETIONS, {"logprob_token_ids": [], "logprobs": 1}),
        (COMPLETIONS, {"logprob_token_ids": list(range(129)), "logprobs": 1}),
        (COMPLETIONS, {"logprob_token_ids": [10**9], "logprobs": 1}),
        (COMPLETIONS, {"logprob_token_ids": [-1], "logprobs": 1}),
        (COMPLETIONS, {"logprob_token_ids": [1], "logprobs": 1, "echo": True, "max_tokens": 0}),
        (CHAT, {"logprob_token_ids": NAMED}),
        (CHAT, {"logprob_token_ids": NAMED, "logprobs": False}),
    ],
)
def test_unavailable_logprobs_are_refused_by_name(
    demo_server: Running, path: str, wrong: dict[str, Any]
) -> None:
    asked = {"prompt": "x"} if path == COMPLETIONS else {"messages": MESSAGES}
    with demo_server.http() as client:
        response = client.post(path, json={**asked, **wrong})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("logprob_token_ids")


def test_the_maximum_is_accepted_and_one_more_is_refused(demo_server: Running) -> None:
    named = list(range(128))
    answer = ask(demo_server, COMPLETIONS, prompt="x", logprobs=0, logprob_token_ids=named, **AS_IDS)
    assert all(len(top) >= 128 for top in answer["choices"][0]["logprobs"]["top_logprobs"])
