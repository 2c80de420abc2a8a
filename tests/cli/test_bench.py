"""`berth bench`: a load on a stand-in with known counts, and the results computed from it."""

from __future__ import annotations

import json
import random

import pytest

from cli.figures import Outcome, percentile, summary
from cli.prompts import prompt_of, words_for
from tests.cli.command import CTRL_C, berth, terminal
from tests.cli.talking_engine import REFUSED, STALLED

pytestmark = pytest.mark.timeout(120)
LOAD = ("bench", "talker", "-n", "6", "-c", "3", "--input-tokens", "40", "--output-tokens", "20")


def test_tokens_are_counted_by_the_server(url: str) -> None:
    ran = berth(url, *LOAD, "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    result = json.loads(ran.stdout)
    assert (result["completed"], result["failed"], result["errors"]) == (6, 0, {})
    assert (result["input_tokens"], result["output_tokens"]) == (6 * 40, 6 * 20)  # two tokens for each word
    assert result["output_tokens_per_s"] == pytest.approx(120 / result["duration_s"])
    assert result["total_tokens_per_s"] == pytest.approx(360 / result["duration_s"])
    assert result["ttft_ms"]["p50"] <= result["ttft_ms"]["p95"] <= result["ttft_ms"]["p99"]
    assert result["itl_ms"]["mean"] == pytest.approx(result["tpot_ms"]["mean"])  # ten pieces of two tokens
    assert result["e2e_ms"]["mean"] > result["ttft_ms"]["mean"]


def test_the_table_shows_them_too(url: str) -> None:
    out = berth(url, *LOAD, "--request-rate", "500").stdout
    for name in (
        "output tokens per s",
        "time to first token",
        "inter-token time",
        "p99",
        "6 answered, 0 failed",
    ):
        assert name in out
    assert max(map(len, out.splitlines())) <= 80


def test_failures_are_counted_and_shown(url: str) -> None:
    ran = berth(url, *LOAD, "--set", f"user={REFUSED}")
    assert ran.returncode == 1
    assert "0 answered, 6 failed" in ran.stdout
    assert "6 failed: 400: not to you" in ran.stderr
    ran = berth(url, *LOAD, "--set", f"user={REFUSED}", "--json")
    assert (ran.returncode, json.loads(ran.stdout)["errors"]) == (1, {"400: not to you": 6})


def test_ctrl_c_shows_the_results_so_far(url: str) -> None:
    berth(url, *LOAD)  # by now, two have been answered
    with terminal(url, *LOAD[:2], "--set", f"user={STALLED}", "-c", "1") as running:
        running.expect("0 of 64 requests")
        running.type(CTRL_C)
        assert running.wait() == 130
        assert "0 answered, 0 failed, of 64" in running.screen


def test_another_server_can_be_measured(url: str) -> None:
    """Only its URL is known; its only model need not be named."""
    port = json.loads(berth(url, "ps", "--json").stdout)["data"][0]["port"]
    ran = berth(url, "bench", *LOAD[2:], "--url", f"http://127.0.0.1:{port}/v1", "--json")
    assert json.loads(ran.stdout)["completed"] == 6


def test_percentiles_are_interpolated() -> None:
    assert [percentile([1, 2, 3, 4], percent) for percent in (0, 50, 95, 100)] == [
        1,
        2.5,
        pytest.approx(3.85),
        4,
    ]
    assert percentile([7], 99) == 7


def test_the_times_of_a_request_are_measured() -> None:
    two_in_each = Outcome(1.0, (0.1, 0.3, 0.5), 10, 5)
    assert two_in_each.first_s == 0.1
    assert two_in_each.tpot_s == pytest.approx(0.1)
    assert two_in_each.gaps_s == [pytest.approx(0.1)] * 2
    uncounted = Outcome(1.0, (0.1, 0.3))
    assert uncounted.tpot_s is None
    assert uncounted.gaps_s == [pytest.approx(0.2)]


def test_unknown_values_are_left_out() -> None:
    result = summary([Outcome(1.0, (0.5,), None, None), Outcome(1.0, (), error="x")], 2.0)
    assert (result["input_tokens"], result["output_tokens_per_s"], result["total_tokens_per_s"]) == (
        None,
    ) * 3
    assert (result["requests_per_s"], result["errors"], result["tpot_ms"]) == (0.5, {"x": 1}, None)
    assert summary([], 0.0)["requests_per_s"] is None


@pytest.mark.parametrize("wanted", [1, 10, 128, 1000])
@pytest.mark.parametrize(("per_word", "always"), [(1.0, 0), (1.37, 5), (3.0, 1)])
def test_prompts_have_about_the_requested_number_of_tokens(wanted: int, per_word: float, always: int) -> None:
    def count(prompt: str) -> int:
        return always + round(per_word * len(prompt.split()))

    num_words = words_for(wanted, count, random.Random(0))
    assert num_words == 1 or abs(count("a " * num_words) - wanted) <= max(3, 0.05 * wanted)
    assert words_for(wanted, lambda _: None, random.Random(0)) == wanted


def test_prompts_differ_from_the_first_word() -> None:
    rng = random.Random(0)
    assert len({prompt_of(100, rng)[:20] for _ in range(50)}) == 50
