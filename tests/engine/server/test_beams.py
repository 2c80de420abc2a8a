"""Beam search, compared with a plain implementation of vLLM's algorithm on transformers' logits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.core.batch import Batch, StepResult
from engine.core.sleep import SleepMode
from engine.core.types import PositionLogprobs, TokenLogprob
from engine.server.generation.beam_search import BeamSearch, BeamSearchParams
from tests.engine.server.in_process import CHAT, COMPLETIONS, App, app_in_process
from tests.engine.server.serving import Running, wait_until

MODEL = Path(__file__).resolve().parents[3] / "models" / "berth-demo"
MESSAGES = [{"role": "user", "content": "Hello"}]
BEAMS: dict[str, Any] = {"use_beam_search": True}

Next = Callable[[tuple[int, ...]], Sequence[float]]  # logprobs of the whole vocabulary after these tokens


class Found(NamedTuple):
    tokens: tuple[int, ...]
    total: float
    reason: str


def reference_search(
    following: Next,
    prompt: Sequence[int],
    *,
    width: int,
    max_tokens: int,
    end: int,
    length_penalty: float = 1.0,
    ignore_eos: bool = False,
    keep_end: bool = False,
) -> list[Found]:
    """Runs to the last step and keeps all completed beams, as vLLM does."""
    live = [Found((), 0.0, "length")]
    completed: list[Found] = []
    for _ in range(max_tokens):
        candidates: list[Found] = []
        for beam in live:
            row = following((*prompt, *beam.tokens))
            for token in sorted(range(len(row)), key=lambda t: -row[t])[: 2 * width]:
                total = beam.total + row[token]
                if token == end and not ignore_eos:
                    tokens = (*beam.tokens, token) if keep_end else beam.tokens
                    completed.append(Found(tokens, total, "stop"))
                else:
                    candidates.append(Found((*beam.tokens, token), total, "length"))
        live = sorted(candidates, key=lambda beam: -beam.total)[:width]
        if not live:
            break

    def score(beam: Found) -> float:
        whole = (*prompt, *beam.tokens)
        return beam.total / max(1, len(whole) - (whole[-1] == end)) ** length_penalty  # type: ignore[no-any-return]

    return sorted(completed + live, key=score, reverse=True)[:width]


@pytest.fixture(scope="module")
def following() -> Next:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)

    @cache
    @torch.inference_mode()
    def logprobs(tokens: tuple[int, ...]) -> Sequence[float]:
        row: list[float] = model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1).tolist()
        return row

    return logprobs


def post(server: Running, path: str, **body: Any) -> dict[str, Any]:
    with server.http() as client:
        response = client.post(path, json={**BEAMS, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


END = 3065  # of the demo model


@pytest.mark.parametrize(
    "options",
    [
        {"n": 1},
        {"n": 3},
        {"n": 4, "length_penalty": 0.0},
        {"n": 4, "length_penalty": 3.0},
        {"n": 2, "length_penalty": -1.0},
        {"n": 3, "ignore_eos": True},
        {"n": 3, "include_stop_str_in_output": True},
        {"n": 2, "temperature": 0.0, "top_p": 0.5, "top_k": 1, "seed": 3},
    ],
    ids=str,
)
def test_a_chats_beams_equal_the_references(
    demo_server: Running, following: Next, options: dict[str, Any]
) -> None:
    body = {"messages": MESSAGES, "max_tokens": 14, "return_token_ids": True, "logprobs": True, **options}
    answer = post(demo_server, CHAT, **body)
    expected = reference_search(
        following,
        answer["prompt_token_ids"],
        width=options["n"],
        max_tokens=14,
        end=END,
        length_penalty=options.get("length_penalty", 1.0),
        ignore_eos=options.get("ignore_eos", False),
        keep_end=options.get("include_stop_str_in_output", False),
    )
    found = [tuple(choice["token_ids"]) for choice in answer["choices"]]
    assert found == [beam.tokens for beam in expected]
    assert [choice["index"] for choice in answer["choices"]] == list(range(options["n"]))
    assert [choice["finish_reason"] for choice in answer["choices"]] == [beam.reason for beam in expected]
    assert (expected[0].reason == "stop") == (not options.get("ignore_eos")), "a prompt too dull to test with"
    for choice, beam in zip(answer["choices"], expected, strict=True):
        assert choice["stop_reason"] == (END if beam.reason == "stop" else None)
        logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        assert len(logprobs) == len(beam.tokens)
        if beam.reason == "length" or options.get("include_stop_str_in_output"):
            assert sum(logprobs) == pytest.approx(beam.total, abs=1e-3)
    assert answer["usage"]["prompt_tokens"] == len(answer["prompt_token_ids"])
    assert answer["usage"]["completion_tokens"] == sum(len(beam.tokens) for beam in expected)


def test_completions_of_several_prompts(demo_server: Running, following: Next) -> None:
    prompts = ["The capital of", "One two three", "Hello"]
    body = {"prompt": prompts, "n": 2, "max_tokens": 6, "return_token_ids": True, "echo": True}
    answer = post(demo_server, COMPLETIONS, **body)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    for index, prompt in enumerate(prompts):
        choices = answer["choices"][2 * index : 2 * index + 2]
        expected = reference_search(following, choices[0]["prompt_token_ids"], width=2, max_tokens=6, end=END)
        assert [tuple(choice["token_ids"]) for choice in choices] == [beam.tokens for beam in expected]
        assert all(choice["text"].startswith(prompt) for choice in choices)


def test_the_requested_number_of_logprobs_is_returned(demo_server: Running) -> None:
    for wanted in (0, 1, 9):
        answer = post(demo_server, COMPLETIONS, prompt="Hello", n=2, max_tokens=3, logprobs=wanted)
        for choice in answer["choices"]:
            assert all(wanted <= len(top) <= wanted + 1 for top in choice["logprobs"]["top_logprobs"])


def test_a_search_ends_early_only_if_that_changes_nothing() -> None:
    """Random scores over ten tokens, one an end token: the same beams as without stopping early."""
    num_early = 0
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        table = (3 * torch.randn(10, 10, generator=generator)).log_softmax(-1).tolist()
        penalty, width = [-1.0, 0.0, 0.5, 1.0, 2.0][seed % 5], 1 + seed % 3
        params = BeamSearchParams(
            width=width,
            length_penalty=penalty,
            end_token_ids=frozenset({0}),
            ignores_end_tokens=False,
            keeps_end_token=seed % 2 == 0,
        )
        search, steps = BeamSearch(params, (5,), 12), 0
        while not search.is_done:
            rows = [table[(beam.token_ids or (5,))[-1]] for beam in search.live]
            search.advance([position_of(row) for row in rows])
            steps += 1
        num_early += steps < 12
        expected = reference_search(
            lambda tokens, table=table: table[tokens[-1]],  # type: ignore[misc]
            (5,),
            width=width,
            max_tokens=12,
            end=0,
            length_penalty=penalty,
            keep_end=params.keeps_end_token,
        )
        assert [beam.token_ids for beam in search.best()] == [beam.tokens for beam in expected], seed
    assert num_early > 50


def position_of(row: Sequence[float]) -> PositionLogprobs:
    ranked = sorted(range(len(row)), key=lambda token: -row[token])
    top = tuple(TokenLogprob(token, row[token], rank) for rank, token in enumerate(ranked, start=1))
    return PositionLogprobs(top[0], top)


# Unsupported fields


@pytest.fixture(scope="module")
async def app(fake_model: Path) -> AsyncIterator[App]:
    async with app_in_process(fake_model) as app:
        yield app


FORMAT = {"type": "json_object"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        (COMPLETIONS, {"stream": True}, "stream"),
        (CHAT, {"stream": True}, "stream"),
        (COMPLETIONS, {"n": 33}, "n"),
        (COMPLETIONS, {"best_of": 4}, "best_of"),
        (COMPLETIONS, {"early_stopping": True}, "early_stopping"),
        (COMPLETIONS, {"stop": "x"}, "stop"),
        (COMPLETIONS, {"stop_token_ids": [3]}, "stop_token_ids"),
        (COMPLETIONS, {"min_tokens": 2}, "min_tokens"),
        (COMPLETIONS, {"logit_bias": {"3": 1}}, "logit_bias"),
        (COMPLETIONS, {"allowed_token_ids": [3]}, "allowed_token_ids"),
        (COMPLETIONS, {"bad_words": ["x"]}, "bad_words"),
        (COMPLETIONS, {"presence_penalty": 1.0}, "presence_penalty"),
        (COMPLETIONS, {"frequency_penalty": 1.0}, "frequency_penalty"),
        (COMPLETIONS, {"repetition_penalty": 1.1}, "repetition_penalty"),
        (COMPLETIONS, {"prompt_logprobs": 0}, "prompt_logprobs"),
        (COMPLETIONS, {"echo": True, "logprobs": 1}, "echo"),
        (COMPLETIONS, {"logprob_token_ids": [3], "logprobs": 1}, "logprob_token_ids"),
        (COMPLETIONS, {"response_format": FORMAT}, "response_format"),
        (CHAT, {"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        (CHAT, {"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        (CHAT, {"thinking_token_budget": 5}, "thinking_token_budget"),
        (COMPLETIONS, {"length_penalty": 1e300}, "length_penalty"),
        (COMPLETIONS, {"length_penalty": "1"}, "length_penalty"),
        (COMPLETIONS, {"use_beam_search": "yes"}, "use_beam_search"),
    ],
)
async def test_fields_unsupported_with_beams_are_refused_by_name(
    app: App, path: str, more: dict[str, Any], param: str
) -> None:
    asked = {"prompt": "x"} if path == COMPLETIONS else {"messages": MESSAGES}
    status, answer = await app.post(path, **{**BEAMS, **asked, **more})
    assert (status, answer["error"]["param"]) == (400, param), answer


async def test_beams_times_tokens_are_limited(fake_model: Path) -> None:
    async with app_in_process(fake_model, max_model_len=16_384) as app:
        status, answer = await app.post(CHAT, messages=MESSAGES, n=32, **BEAMS)
        assert (status, answer["error"]["param"]) == (400, "n")
        assert "262144" in answer["error"]["message"]


async def test_length_penalty_without_beams_has_no_effect(app: App) -> None:
    app.will_say("ab")
    answer = await app.ask(COMPLETIONS, prompt="x", length_penalty=3.0)
    assert answer["choices"][0]["text"] == "ab"


# Ends


def test_metrics_count_the_choices(demo_server: Running) -> None:
    def count(page: str, name: str) -> float:
        return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(f"vllm:{name}"))

    with demo_server.http() as client:
        before = client.get("/metrics").text
        post(demo_server, COMPLETIONS, prompt="Hello", n=3, max_tokens=4)
        after = client.get("/metrics").text
    assert count(after, "request_success_total") - count(before, "request_success_total") == 3
    assert count(after, "request_prompt_tokens_count") - count(before, "request_prompt_tokens_count") == 3
    demo_server.wait_idle()


def endless(app: App, request_id: str) -> asyncio.Task[tuple[int, Any]]:
    body = {"prompt": "x", "n": 2, "max_tokens": 1900, "ignore_eos": True, "return_token_ids": True}
    return asyncio.create_task(app.post(COMPLETIONS, **BEAMS, **body, request_id=request_id))


@pytest.fixture
async def real_app(fake_model: Path) -> AsyncIterator[App]:
    """An app whose runner returns more logprobs than the chosen token's."""
    async with app_in_process(fake_model) as app:
        plain = app.runner.execute

        def execute(batch: Batch) -> StepResult:
            result = plain(batch)
            logprobs = {
                index: [position_of([-float((token + index) % 50) for token in range(50)])]
                for index in result.logprobs
            }
            return StepResult(result.tokens, logprobs, result.prompt_logprobs, result.failures)

        app.runner.execute = execute  # type: ignore[method-assign]
        yield app


async def test_an_abort_returns_the_partial_beams(real_app: App) -> None:
    app = real_app
    asked = endless(app, "mine")
    await asyncio.to_thread(wait_until, lambda: app.runner.num_steps > 20)
    await app.ask("/abort_requests", request_ids=["mine"])
    status, answer = await asked
    assert status == 200
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["abort"] * 2
    assert all(5 < len(choice["token_ids"]) < 1900 for choice in answer["choices"])
    await asyncio.to_thread(wait_until, lambda: app.service.engine.num_unfinished == 0)
    assert app.service.engine.request_ids == []


async def test_a_disconnect_ends_the_search(real_app: App) -> None:
    app = real_app
    asked = endless(app, "mine")
    await asyncio.to_thread(wait_until, lambda: app.runner.num_steps > 20)
    asked.cancel()
    await asyncio.wait([asked])
    await asyncio.to_thread(wait_until, lambda: not app.service.engine.request_ids)
    num_steps = app.runner.num_steps
    await app.ask(COMPLETIONS, prompt="x", max_tokens=1)
    assert app.runner.num_steps <= num_steps + 3
    assert app.service.engine.stats().kv_cache_usage == 0


async def test_sleep_with_mode_wait_waits_for_the_search(real_app: App) -> None:
    app = real_app
    body = {"prompt": "x", "n": 2, "max_tokens": 60, "ignore_eos": True}
    asked = asyncio.create_task(app.post(COMPLETIONS, **BEAMS, **body))
    await asyncio.to_thread(wait_until, lambda: app.runner.num_steps > 5)
    await app.service.engine.sleep_controller.sleep(1, SleepMode.WAIT)
    status, answer = await asked
    assert status == 200
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length"] * 2
    status, answer = await app.post(COMPLETIONS, **BEAMS, **body)
    assert status == 503
