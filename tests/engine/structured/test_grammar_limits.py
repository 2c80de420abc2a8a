"""Hostile grammars reach their limits, and others continue."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from engine.errors import EngineError, InvalidRequest
from engine.structured import CompiledOutput, GrammarCompiler, StructuredKind, StructuredOutput
from engine.structured.compile_turns import CompilerBusy
from engine.structured.limits import Limits
from engine.text.tokenizer import Tokenizer, load_tokenizer

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "models" / "berth-demo"
# Readings multiply from rule to rule.
ENDLESS = "\n".join(
    [
        "root ::= r0",
        *(f"r{n} ::= [a-z]* r{n + 1} [^{chr(97 + n % 26)}]* | r{n + 1} r{n + 1}" for n in range(200)),
        'r200 ::= "x"',
    ]
)
# Harmless for the first 300 digits; each letter after them can be read in ever more ways.
SLOW_LATE = 'root ::= [0-9]{300} "x" e\ne ::= e e | "a" | "b" | e "a" e | e e e\n'
# Reading it takes seconds, in Python.
LABORIOUS = json.dumps(
    {
        "type": "object",
        "properties": {
            f"p{n}": {"type": "string", "pattern": f"^[a-z]{{1,{n % 50 + 1}}}{n}$", "maxLength": 60}
            for n in range(2500)
        },
        "required": [f"p{n}" for n in range(2500)],
    }
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(DEMO)


@pytest.fixture(scope="module")
def shared(tokenizer: Tokenizer) -> Iterator[GrammarCompiler]:
    """For tests that don't change it."""
    eos = tokenizer.eos_token_id
    assert eos is not None
    grammar_compiler = GrammarCompiler(tokenizer, vocab_size=tokenizer.vocab_size, eos_token_ids=[eos])
    yield grammar_compiler
    grammar_compiler.close()


@pytest.fixture
def make(tokenizer: Tokenizer) -> Iterator[Callable[..., GrammarCompiler]]:
    made: list[GrammarCompiler] = []

    def make(**settings: object) -> GrammarCompiler:
        eos = tokenizer.eos_token_id
        assert eos is not None
        made.append(
            GrammarCompiler(tokenizer, vocab_size=tokenizer.vocab_size, eos_token_ids=[eos], **settings)  # type: ignore[arg-type]
        )
        return made[-1]

    yield make
    for grammar_compiler in made:
        grammar_compiler.close()


def schema(name: str) -> StructuredOutput:
    """A different schema for each name."""
    text = json.dumps({"type": "object", "properties": {name: {"type": "string"}}, "required": [name]})
    return StructuredOutput(StructuredKind.JSON_SCHEMA, text, "response_format")


def grammar(text: str) -> StructuredOutput:
    return StructuredOutput(StructuredKind.GRAMMAR, text, "structured_outputs.grammar")


async def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it has not come true"
        await asyncio.sleep(0.01)


def writers() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "engine.structured.writer" in one.cmdline()]


# Compiling


async def test_a_grammar_that_can_be_read_in_too_many_ways_is_refused_at_once(
    shared: GrammarCompiler,
) -> None:
    await shared.compile(schema("warm"))
    begun = time.monotonic()
    with pytest.raises(InvalidRequest, match="can be read in too many ways: simplify it") as raised:
        await shared.compile(grammar(ENDLESS))
    assert raised.value.param == "structured_outputs.grammar"
    assert time.monotonic() - begun < 5


async def test_a_schema_that_takes_long_to_read_is_refused_after_its_time(
    make: Callable[..., GrammarCompiler],
) -> None:
    grammar_compiler = make(limits=Limits(write_s=0.02))
    with pytest.raises(InvalidRequest, match=r"takes longer than 0\.02 s to compile: simplify it"):
        await grammar_compiler.compile(StructuredOutput(StructuredKind.JSON_SCHEMA, LABORIOUS, "format"))
    await grammar_compiler.compile(schema("a"))  # by the same process


async def test_nobody_waits_while_a_schema_is_read(shared: GrammarCompiler) -> None:
    """It is read in another process, so that it doesn't hold the interpreter's lock."""
    await shared.compile(schema("warm"))
    gaps: list[float] = []
    is_over = threading.Event()

    def measure() -> None:
        last = time.perf_counter()
        while not is_over.wait(0.001):
            gaps.append(time.perf_counter() - last)
            last = time.perf_counter()

    watch = threading.Thread(target=measure, daemon=True)
    watch.start()
    begun = time.process_time()
    await shared.compile(StructuredOutput(StructuredKind.JSON_SCHEMA, LABORIOUS, "format"))
    is_over.set()
    watch.join()
    assert sorted(gaps)[-4] < 0.25
    assert time.process_time() - begun < 2.0  # of this process


@pytest.mark.parametrize("tenants", [("", ""), ("a", "b")], ids=["without keys", "with keys"])
async def test_a_schema_compiles_in_time_beside_a_flood_of_laborious_ones(
    tenants: tuple[str, str], make: Callable[..., GrammarCompiler]
) -> None:
    attacker, victim = tenants
    grammar_compiler = make(limits=Limits(write_s=0.5))
    await grammar_compiler.compile(schema("warm"), victim)
    flood = [
        asyncio.create_task(
            grammar_compiler.compile(
                StructuredOutput(StructuredKind.JSON_SCHEMA, LABORIOUS, f"format{n}"), attacker
            )
        )
        for n in range(80)
    ]
    await asyncio.sleep(0)
    took = []
    for name in ("one", "two", "three", "four", "five"):
        begun = time.monotonic()
        await grammar_compiler.compile(schema(name), victim)
        took.append(time.monotonic() - begun)
    for task in flood:
        task.cancel()
    ends = await asyncio.gather(*flood, return_exceptions=True)
    assert any(isinstance(one, CompilerBusy) for one in ends)  # more than may wait
    assert sorted(took)[1] < 2.0, took  # of five, as a machine that does other things takes its moments


async def test_a_flood_evicts_its_own_grammars_and_no_others(make: Callable[..., GrammarCompiler]) -> None:
    grammar_compiler = make(max_cached=3)
    mine = await grammar_compiler.compile(schema("mine"), "me")
    for name in "abcd":
        await grammar_compiler.compile(schema(name), "flood")
    assert await grammar_compiler.compile(schema("mine"), "me") is mine


async def test_equal_requests_compile_once_unless_of_other_tenants(shared: GrammarCompiler) -> None:
    mine = await shared.compile(schema("a"), "me")
    assert await shared.compile(schema("a"), "me") is mine
    assert await shared.compile(schema("a"), "you") is not mine


async def test_a_request_that_leaves_takes_no_other_with_it(make: Callable[..., GrammarCompiler]) -> None:
    grammar_compiler = make()
    one, other = (asyncio.create_task(grammar_compiler.compile(schema("a"))) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    follow(grammar_compiler, await other, steps=1)


# The process that reads schemas


async def test_the_process_that_reads_is_bounded_and_inherits_nothing(
    make: Callable[..., GrammarCompiler],
) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.set_inheritable(listener.fileno(), True)
        before = writers()
        await make().compile(schema("a"))
        [process] = [one for one in writers() if one not in before]
        limit, _ = process.rlimit(psutil.RLIMIT_AS)
        assert 0 < limit < 2**31
        assert process.net_connections() == []  # no socket of the network, and so no port
        score = Path(f"/proc/{process.pid}/oom_score_adj").read_text()
        assert int(score) > 0  # before the engine, if memory ends


async def test_a_killed_process_is_replaced_and_no_schema_is_blamed(
    make: Callable[..., GrammarCompiler],
) -> None:
    grammar_compiler = make()
    before = writers()
    compiled = await grammar_compiler.compile(schema("a"))
    [process] = [one for one in writers() if one not in before]
    process.kill()
    process.wait()
    follow(grammar_compiler, compiled, steps=1)
    with pytest.raises(EngineError, match="try again") as raised:
        await grammar_compiler.compile(schema("b"))
    assert not isinstance(raised.value, InvalidRequest)
    follow(grammar_compiler, await grammar_compiler.compile(schema("b")), steps=1)


def test_the_process_ends_with_the_engine_however_it_ends() -> None:
    program = textwrap.dedent(
        """
        import asyncio, os, signal
        from tests.engine.structured.test_grammar_limits import DEMO, schema, writers
        from engine.structured import GrammarCompiler
        from engine.text.tokenizer import load_tokenizer
        async def main():
            tokenizer = load_tokenizer(DEMO)
            eos = tokenizer.eos_token_id
            size = tokenizer.vocab_size
            grammar_compiler = GrammarCompiler(tokenizer, vocab_size=size, eos_token_ids=[eos])
            await grammar_compiler.compile(schema("a"))
            print(*[one.pid for one in writers()], flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(main())
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60, check=False
    )
    [pid] = [int(word) for word in result.stdout.split()]
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Masks


async def test_slow_masks_end_their_request_and_leave_the_quick_thread(
    make: Callable[..., GrammarCompiler],
) -> None:
    grammar_compiler = make(limits=Limits(slow_masks_s=0.2))
    compiled = await grammar_compiler.compile(grammar(SLOW_LATE))
    with pytest.raises(InvalidRequest, match=r"takes too long to follow: .*Simplify") as raised:
        follow(grammar_compiler, compiled, steps=900)
    assert raised.value.param == "structured_outputs.grammar"
    assert 10 in {os.getpriority(os.PRIO_PROCESS, one.id) for one in psutil.Process().threads()}


async def test_no_mask_takes_long(make: Callable[..., GrammarCompiler]) -> None:
    """Whatever the grammar: the compiler ends what would, as a thread can't be ended."""
    grammar_compiler = make()
    hostile = [
        grammar(SLOW_LATE.replace("{300}", "{9}")),
        grammar("root ::= s*\ns ::= s s | s s s | [a-z ]"),
        grammar('root ::= (p q r)*\np ::= [a-z]* q\nq ::= [a-z]* r [a-z]*\nr ::= [a-z]* | p "x"\n'),
        StructuredOutput(StructuredKind.REGEX, "(.{0,60}a){0,60}z", "regex"),
        StructuredOutput(StructuredKind.REGEX, "[ab]*a[ab]{4000}", "regex"),
    ]
    for wanted in hostile:
        try:
            constraint = grammar_compiler.constraint(await grammar_compiler.compile(wanted))
        except InvalidRequest:
            continue
        before = time.process_time()
        for _ in range(120):
            begun = time.process_time()
            assert constraint.wait(30)
            assert time.process_time() - begun < 1.0
            mask = mask_of(grammar_compiler)
            try:
                constraint.fill_mask(mask, 0)
            except InvalidRequest:
                break
            tokens = allowed_by(mask, grammar_compiler._vocab_size)
            if tokens == list(grammar_compiler._eos_token_ids):
                break
            constraint.accept(next(token for token in tokens if token not in grammar_compiler._eos_token_ids))
        assert time.process_time() - before < 10


def follow(grammar_compiler: GrammarCompiler, compiled: CompiledOutput, steps: int) -> None:
    """Repeatedly take the allowed token with the highest id, except the end token."""
    constraint = grammar_compiler.constraint(compiled)
    end = grammar_compiler._eos_token_ids[0]
    for _ in range(steps):
        mask = mask_of(grammar_compiler)
        constraint.fill_mask(mask, 0)
        tokens = allowed_by(mask, grammar_compiler._vocab_size)
        constraint.accept(next(token for token in reversed(tokens) if token != end))


def mask_of(grammar_compiler: GrammarCompiler) -> torch.Tensor:
    return torch.full((1, -(-grammar_compiler._vocab_size // 32)), -1, dtype=torch.int32)


def allowed_by(mask: torch.Tensor, vocab_size: int) -> list[int]:
    bits = (mask[0][:, None] >> torch.arange(32)) & 1
    return bits.flatten()[:vocab_size].nonzero().flatten().tolist()


async def test_an_output_without_an_end_token_is_complete_when_that_is_known(
    tokenizer: Tokenizer,
) -> None:
    """The engine does not wait for it, but asks again at its next step."""
    grammar_compiler = GrammarCompiler(tokenizer, vocab_size=tokenizer.vocab_size, eos_token_ids=[])
    choice = StructuredOutput(StructuredKind.CHOICE, '["yes"]', "x")
    constraint = grammar_compiler.constraint(await grammar_compiler.compile(choice))
    for token in tokenizer.encode("yes", add_special_tokens=False):
        assert constraint.wait(10) and not constraint.is_finished
        constraint.accept(token)
    await until(lambda: constraint.is_finished)
    assert not constraint.wait(0.0)  # there will be no mask
    grammar_compiler.close()
