"""Constraints on outputs, in the whole core: masks, aborts, preemption, and failures."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.types import EngineRequest, FinishReason, SamplingParams, TokenConstraint, TokenDelta
from engine.execution.build import build_core
from engine.execution.sampling.masks import BitmaskFiller
from tests.engine.test_generation import core_of
from tests.engine.tiny_models import prompt_of

EOS = 1
FREE = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)


class Script:
    """Allows the given tokens position by position; then, like a grammar, only the end."""

    def __init__(
        self, allowed: list[set[int]], *, fails_at: int = -1, refuses: int = -1, num_late: int = 0
    ) -> None:
        """`num_late`: how often it isn't ready, for each mask."""
        self._num_late = num_late
        self._looks = 0
        self.waited_s: list[float] = []
        self._allowed = allowed
        self._fails_at = fails_at
        self._refuses = refuses
        self.accepted: list[int] = []

    def wait(self, timeout_s: float) -> bool:
        self.waited_s.append(timeout_s)
        self._looks += 1
        return self._looks > self._num_late

    def fill_mask(self, mask: Any, row: int) -> bool:
        if len(self.accepted) == self._fails_at:
            mask[row] = 0
            raise RuntimeError("the grammar is broken")
        allowed = {EOS} if self.is_finished else self._allowed[len(self.accepted)]
        if not allowed:
            return False  # anything goes
        mask[row] = 0
        for token in allowed:
            bit = 1 << (token % 32)
            mask[row, token // 32] |= bit - (1 << 32) if bit == 1 << 31 else bit
        return True

    def accept(self, token_id: int) -> None:
        if len(self.accepted) == self._refuses:
            raise ValueError(f"no place for {token_id}")
        self.accepted.append(token_id)
        self._looks = 0

    def rollback(self, num_tokens: int) -> None:
        del self.accepted[len(self.accepted) - num_tokens :]

    @property
    def is_finished(self) -> bool:
        return len(self.accepted) >= len(self._allowed)


SCRIPT: list[set[int]] = [{40, 63, 31}, set(), {64, 319}, {2, 3, 5}, {100}]


@pytest.fixture(scope="module")
def model(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("qwen3-tied")


def constrained(
    name: str, constraint: TokenConstraint | None, params: SamplingParams = FREE, length: int = 9
) -> EngineRequest:
    return EngineRequest(
        request_id=name,
        prompt_token_ids=prompt_of(length),
        params=params,
        arrival_time=0.0,
        constraint=constraint,
    )


def run(core: EngineCore, *requests: EngineRequest) -> tuple[dict[str, list[int]], dict[str, TokenDelta]]:
    for request in requests:
        core.add(request)
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    last: dict[str, TokenDelta] = {}
    while core.has_work:
        for delta in core.step():
            tokens[delta.request_id] += delta.token_ids
            last[delta.request_id] = delta
        core.check_integrity()
    return tokens, last


def follows(tokens: list[int], script: list[set[int]]) -> bool:
    return all(not allowed or token in allowed for token, allowed in zip(tokens, script, strict=False))


def test_outputs_obey_their_constraint(model: Path) -> None:
    core = core_of(model)
    with_eos = replace(FREE, ignore_eos=False)
    sampled = replace(with_eos, temperature=2.0, seed=5, logprobs=1, presence_penalty=0.5, min_tokens=3)
    requests = [
        constrained("free", None),
        constrained("greedy", Script(SCRIPT), with_eos),
        constrained("sampled", Script(SCRIPT), sampled, length=30),
        constrained("also free", None, length=20),
        constrained("no end", Script(SCRIPT)),
        constrained("too early", Script(SCRIPT), replace(with_eos, min_tokens=9)),
    ]
    tokens, last = run(core, *requests)
    for name in ("greedy", "sampled"):
        assert follows(tokens[name], SCRIPT) and tokens[name][5:] == [EOS]
        assert last[name].finish_reason == FinishReason.STOP
    # Where no end of sequence could follow or would end it, the finished constraint does.
    for name in ("no end", "too early"):
        assert follows(tokens[name], SCRIPT) and len(tokens[name]) == 5
        assert (last[name].finish_reason, last[name].stop_reason) == (FinishReason.STOP, None)
    for name, length in (("free", 9), ("also free", 20)):
        alone, _ = run(core_of(model), constrained("free", None, length=length))
        assert tokens[name] == alone["free"]


def test_a_preempted_constraint_continues_where_it_was(model: Path) -> None:
    script = [set(range(10, 90))] * 24
    params = replace(FREE, max_tokens=24)
    roomy, _ = run(core_of(model), *(constrained(str(n), Script(script), params, 30 + n) for n in range(4)))
    tight = core_of(
        model, block_size=4, num_gpu_blocks_override=36, max_model_len=60, enable_prefix_caching=False
    )
    scripts = [Script(script) for _ in range(4)]
    tokens, _ = run(tight, *(constrained(str(n), scripts[n], params, 30 + n) for n in range(4)))
    assert tight.stats().num_preemptions > 0
    assert tokens == roomy
    assert all(follows(tokens[str(n)], script) for n in range(4))
    assert [script.accepted for script in scripts] == [tokens[str(n)][:-1] for n in range(4)]


@pytest.mark.parametrize(
    ("broken", "message", "num_tokens"),
    [
        (Script(SCRIPT, fails_at=0), "RuntimeError: the grammar is broken", 0),
        (Script(SCRIPT, fails_at=3), "RuntimeError: the grammar is broken", 3),
        (Script(SCRIPT, refuses=2), "ValueError: no place for", 3),
        (Script([{2}, {2}]), "No token is left to choose from", 1),  # a bad word is all that is allowed
    ],
    ids=["at once", "later", "accept", "dead end"],
)
def test_a_broken_constraint_ends_its_own_request_only(
    broken: Script, message: str, num_tokens: int, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [
        constrained("before", Script(SCRIPT)),
        constrained("broken", broken, replace(FREE, bad_words=((2, 2),))),
        constrained("after", Script(SCRIPT), length=20),
        constrained("free", None),
    ]
    with caplog.at_level(logging.ERROR):
        tokens, last = run(core_of(model), *requests)
    assert last["broken"].finish_reason == FinishReason.ERROR
    assert message in str(last["broken"].error) and len(tokens["broken"]) == num_tokens
    others, _ = run(
        core_of(model),
        constrained("before", Script(SCRIPT)),
        constrained("after", Script(SCRIPT), length=20),
        constrained("free", None),
    )
    assert {name: tokens[name] for name in others} == others


@pytest.mark.parametrize("beside", [True, False], ids=["beside others", "alone"])
def test_a_late_constraint_gives_the_same_output_and_delays_no_other(beside: bool, model: Path) -> None:
    params = replace(FREE, ignore_eos=False, temperature=1.5, seed=3, logprobs=1, prompt_logprobs=1)
    others = [constrained("free", None, length=40), constrained("in time", Script(SCRIPT), length=20)]

    def asked(late: Script) -> list[EngineRequest]:
        return [constrained("late", late, params, length=30), *(others if beside else [])]

    punctual, _ = run(core_of(model), *asked(Script(SCRIPT)))
    if beside:
        others = [constrained("free", None, length=40), constrained("in time", Script(SCRIPT), length=20)]
    late = Script(SCRIPT, num_late=7)
    tokens, last = run(core_of(model), *asked(late))
    assert tokens == punctual
    assert last["late"].finish_reason == FinishReason.STOP
    assert max(late.waited_s) <= 0.02 and sorted(late.waited_s)[len(late.waited_s) // 2] < 0.011


def test_no_step_waits_long_for_late_constraints(model: Path) -> None:
    """All late constraints share one waiting time, however many there are, and it shrinks."""
    lates = {row: Script([{2}], num_late=10**9) for row in range(8)}
    filler = BitmaskFiller(64, beside_model=False)
    sums = []
    for _ in range(12):
        for late in lates.values():
            late.waited_s.clear()
        filling = filler.start(lates)
        assert filling is not None and filling().late == set(lates)
        sums.append(max(sum(late.waited_s) for late in lates.values()))
    assert max(sums) <= 0.02 and sums[-1] <= 0.0001


def test_an_abort_of_a_constrained_request_frees_its_blocks(model: Path) -> None:
    core = core_of(model)
    core.add(constrained("a", Script(SCRIPT)))
    core.step()
    delta = core.abort("a")
    assert delta is not None and delta.finish_reason == FinishReason.ABORT
    assert core.stats().kv_cache_usage == 0 and not core.has_work


class LateToKnow(Script):
    """Turns out to be finished when asked for a mask, and not before."""

    def wait(self, timeout_s: float) -> bool:
        super().wait(timeout_s)
        return not self.is_finished

    @property
    def is_finished(self) -> bool:
        return super().is_finished and self._looks > 0


@pytest.mark.parametrize("kind", [Script, LateToKnow])
@pytest.mark.parametrize("beside", [True, False], ids=["beside others", "alone"])
def test_a_model_without_an_end_of_sequence(
    kind: type[Script], beside: bool, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "endless"
    shutil.copytree(model, path)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**config, "eos_token_id": None}))
    core = build_core(EngineConfig(model=path, device="cpu", num_threads=2))
    others = [constrained("free", None, length=40)] if beside else []
    tokens, last = run(core, constrained("a", kind(SCRIPT), replace(FREE, ignore_eos=False)), *others)
    assert last["a"].finish_reason == FinishReason.STOP and len(tokens["a"]) == len(SCRIPT)
    core.check_integrity()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 100).flatmap(
        lambda size: st.tuples(
            st.just(size), st.lists(st.sets(st.integers(0, size - 1)) | st.none(), min_size=1, max_size=5)
        )
    )
)
def test_masks_forbid_all_but_what_is_allowed(drawn: tuple[int, list[set[int] | None]]) -> None:
    vocab_size, rows = drawn
    filling = BitmaskFiller(vocab_size, beside_model=False).start(
        {row: Script([allowed]) for row, allowed in enumerate(rows) if allowed is not None}
    )
    logits = torch.ones(len(rows), vocab_size)
    if filling is not None:
        filling().apply(logits)
    for row, allowed in enumerate(rows):
        expected = allowed or set(range(vocab_size))
        assert set(logits[row].isfinite().nonzero().flatten().tolist()) == expected
