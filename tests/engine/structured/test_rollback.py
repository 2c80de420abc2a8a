"""Constraints take tokens back: masks and ends are then as if the tokens had never come."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
import torch

from engine.core.types import MAX_ROLLBACK, TokenConstraint
from engine.errors import GenerationFailed
from engine.structured import GrammarCompiler, StructuredKind, StructuredOutput
from engine.structured.constraints import ReasoningConstraint
from engine.structured.spec import ReasoningDelimiters
from engine.text.tokenizer import Tokenizer, load_tokenizer
from tests.engine.structured.walking import DEMO
from tests.engine.test_constraints import Script

SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}}'


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(DEMO)


@pytest.fixture(params=[True, False], ids=["with an end token", "without"])
def compiler(tokenizer: Tokenizer, request: pytest.FixtureRequest) -> Iterator[GrammarCompiler]:
    eos = tokenizer.eos_token_id
    assert eos is not None
    eos_token_ids = [eos] if request.param else []
    made = GrammarCompiler(tokenizer, vocab_size=tokenizer.vocab_size, eos_token_ids=eos_token_ids)
    yield made
    made.close()


def state_of(constraint: TokenConstraint, vocab_size: int) -> tuple[bool, list[int]]:
    """Whether it is finished, and the tokens that may come next."""
    constraint.wait(1.0 if not constraint.is_finished else 0.0)
    mask = torch.full((1, -(-vocab_size // 32)), -1, dtype=torch.int32)
    if not constraint.is_finished:
        constraint.fill_mask(mask, 0)
    bits = (mask[0][:, None] >> torch.arange(32)) & 1
    return constraint.is_finished, bits.flatten()[:vocab_size].nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        (StructuredKind.JSON_SCHEMA, SCHEMA),
        (StructuredKind.REGEX, "(ab|cd){2,5}e?"),
        (StructuredKind.CHOICE, '["yes", "no", "yesterday"]'),
    ],
)
async def test_a_grammar_continues_from_where_it_was(
    kind: StructuredKind, source: str, compiler: GrammarCompiler
) -> None:
    """Walks that go back at random, also past the end of the output, against what each state was before."""
    compiled = await compiler.compile(StructuredOutput(kind, source, "x"))
    vocab_size = compiler._vocab_size
    for seed in range(6):
        draw = random.Random(seed)
        constraint = compiler.constraint(compiled)
        tokens: list[int] = []
        states = [state_of(constraint, vocab_size)]
        for _ in range(60):
            is_finished, allowed = states[-1]
            if tokens and (is_finished or draw.random() < 0.3):
                back = draw.randint(1, len(tokens))
                constraint.rollback(back)
                del tokens[len(tokens) - back :], states[len(states) - back :]
                assert state_of(constraint, vocab_size) == states[-1], (seed, tokens)
                continue
            tokens.append(draw.choice(allowed))
            constraint.accept(tokens[-1])
            states.append(state_of(constraint, vocab_size))


async def test_a_grammar_takes_back_what_it_has_not_looked_at_yet(compiler: GrammarCompiler) -> None:
    """Without a wait between: an accepted token's mask need not be ready."""
    compiled = await compiler.compile(StructuredOutput(StructuredKind.REGEX, "(ab|cd)*", "x"))
    constraint = compiler.constraint(compiled)
    _, allowed = before = state_of(constraint, compiler._vocab_size)
    token = next(token for token in allowed if token not in compiler._eos_token_ids)
    for _ in range(50):
        constraint.accept(token)
        constraint.rollback(1)
    assert state_of(constraint, compiler._vocab_size) == before
    with pytest.raises(ValueError, match="Only 0 tokens"):
        constraint.rollback(1)


async def test_a_grammar_goes_back_behind_a_failure(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matcher never leaves an error: the tokens that stay are given to a new one."""
    compiled = await compiler.compile(StructuredOutput(StructuredKind.REGEX, "(ab|cd)*", "x"))
    constraint = compiler.constraint(compiled)
    vocab_size = compiler._vocab_size
    states = [state_of(constraint, vocab_size)]
    for _ in range(3):
        token = next(token for token in states[-1][1] if token not in compiler._eos_token_ids)
        constraint.accept(token)
        states.append(state_of(constraint, vocab_size))
    follower = constraint._follower  # type: ignore[attr-defined]
    follower.advance(next(token for token in range(vocab_size) if token not in states[-1][1]))
    with pytest.raises(GenerationFailed):
        follower.wait(10)
        follower.check()
    follower.rollback(2)
    assert follower.wait(10)
    follower.check()
    constraint._num_followed -= 1  # type: ignore[attr-defined]
    assert state_of(constraint, vocab_size) == states[-2]


START, END, OTHER = 3, (4, 5), 6


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("budget", [None, 0, 4])
@pytest.mark.parametrize("has_inner", [True, False])
def test_reasoning_continues_from_where_it_was(is_open: bool, budget: int | None, has_inner: bool) -> None:
    """Against a constraint that never took a step back; delimiters, their parts and budgets included."""
    delimiters = ReasoningDelimiters(start=(START,), end=END, is_open=is_open)

    def make(tokens: Sequence[int]) -> ReasoningConstraint:
        inner = Script([{START, 4, 5, OTHER}] * 200) if has_inner else None
        made = ReasoningConstraint(delimiters, inner=inner, budget=budget, eos_token_ids=[1])
        for token in tokens:
            made.accept(token)
        return made

    draw = random.Random(0)
    constraint, tokens = make(()), list[int]()
    for _ in range(150):
        if tokens and draw.random() < 0.3:
            back = draw.randint(1, min(len(tokens), 5))
            constraint.rollback(back)
            del tokens[len(tokens) - back :]
        else:
            tokens.append(draw.choice(state_of(constraint, 8)[1]))
            constraint.accept(tokens[-1])
        assert state_of(constraint, 8) == state_of(make(tokens), 8), tokens


def test_only_so_many_tokens_of_reasoning_are_taken_back() -> None:
    delimiters = ReasoningDelimiters(start=(START,), end=END, is_open=True)
    constraint = ReasoningConstraint(delimiters, inner=None, budget=None)
    for _ in range(MAX_ROLLBACK + 5):
        constraint.accept(OTHER)
    with pytest.raises(ValueError, match=f"Only {MAX_ROLLBACK} tokens"):
        constraint.rollback(MAX_ROLLBACK + 1)
    constraint.rollback(MAX_ROLLBACK)
