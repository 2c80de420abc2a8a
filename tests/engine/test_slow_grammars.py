"""Grammars that become slow while they are followed: their requests end, and no other stalls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.types import EngineRequest, FinishReason, SamplingParams, TokenConstraint, TokenDelta
from engine.execution.build import build_core
from engine.structured import GrammarCompiler, StructuredKind, StructuredOutput
from engine.structured.limits import Limits
from engine.text.tokenizer import load_tokenizer

DEMO = Path(__file__).parents[2] / "models" / "berth-demo"
# All are fast in the few steps of the validation; then the number of possible parses multiplies.
HOSTILE = {
    "sums": 'root ::= [0-9]{60} "x" e\ne ::= e e | "a" | "b" | e "a" e | e e e\n',
    "runs": "root ::= [0-9]{60} s*\ns ::= s s | s s s | [a-z ]\n",
    "nested": ('root ::= [0-9]{60} (p q r)*\np ::= [a-z]* q\nq ::= [a-z]* r [a-z]*\nr ::= [a-z]* | p "x"\n'),
}
BAR_S = 0.25


@pytest.fixture(scope="module")
def grammar_compiler() -> Iterator[GrammarCompiler]:
    tokenizer = load_tokenizer(DEMO)
    eos = tokenizer.eos_token_id
    assert eos is not None
    limits = Limits(slow_masks_s=0.3)
    made = GrammarCompiler(tokenizer, vocab_size=tokenizer.vocab_size, eos_token_ids=[eos], limits=limits)
    yield made
    made.close()


def request(name: str, constraint: TokenConstraint | None = None, length: int = 400) -> EngineRequest:
    params = SamplingParams(max_tokens=length, min_tokens=length, temperature=1.0, seed=1)
    return EngineRequest(
        request_id=name,
        prompt_token_ids=[5, 6, 7],
        params=params,
        arrival_time=time.monotonic(),
        constraint=constraint,
    )


def stream(core: EngineCore, name: str) -> tuple[list[float], list[int], dict[str, TokenDelta]]:
    """Run one request beside others: gaps between its tokens, the tokens, and the others' ends."""
    core.add(request(name, length=150))
    gaps: list[float] = []
    tokens: list[int] = []
    ends: dict[str, TokenDelta] = {}
    last = time.monotonic()
    while name not in ends:
        for delta in core.step():
            if delta.finish_reason is not None:
                ends[delta.request_id] = delta
            if delta.request_id == name:
                tokens += delta.token_ids
                gaps.append(time.monotonic() - last)
                last = time.monotonic()
    return gaps, tokens, ends


def longest(gaps: list[float]) -> float:
    """But for three: a machine that does other things takes a moment now and then."""
    return sorted(gaps)[-4]


def test_grammars_that_become_slow_end_and_hold_up_nobody(grammar_compiler: GrammarCompiler) -> None:
    core = build_core(EngineConfig(model=DEMO, max_num_seqs=8, max_model_len=512, num_threads=1))
    alone, expected, _ = stream(core, "alone")

    async def compiled() -> dict[str, TokenConstraint]:
        wanted = {
            name: StructuredOutput(StructuredKind.GRAMMAR, text, "structured_outputs.grammar")
            for name, text in HOSTILE.items()
        }
        return {
            name: grammar_compiler.constraint(await grammar_compiler.compile(one))
            for name, one in wanted.items()
        }

    for name, constraint in asyncio.run(compiled()).items():
        core.add(request(name, constraint))
    gaps: list[float] = []
    ends: dict[str, TokenDelta] = {}
    deadline = time.monotonic() + 90
    while not HOSTILE.keys() <= ends.keys():
        assert time.monotonic() < deadline, f"still running: {HOSTILE.keys() - ends.keys()}"
        some, tokens, others = stream(core, f"victim-{len(gaps)}")
        assert tokens == expected
        gaps += some
        ends |= others
    assert longest(gaps) <= longest(alone) + BAR_S
    for name in HOSTILE:
        assert ends[name].finish_reason == FinishReason.ERROR
        assert "takes too long to follow" in str(ends[name].error)
    core.check_integrity()
