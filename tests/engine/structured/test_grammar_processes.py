"""Grammars in their own processes: hostile ones reach their limits, others continue, no process is left."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from engine.errors import GenerationFailed, InvalidRequest
from engine.structured import CompiledOutput, GrammarCompiler, StructuredKind, StructuredOutput
from engine.structured.compile_turns import CompilerBusy
from engine.structured.vocabulary import read_vocabulary
from engine.structured.wire import Limits
from engine.structured.xgrammar_compile import compile_grammar
from engine.text.tokenizer import Tokenizer, load_tokenizer

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "models" / "berth-demo"
# Readings multiply from rule to rule: it compiles for minutes, if it ever ends.
ENDLESS = "\n".join(
    [
        "root ::= r0",
        *(f"r{n} ::= [a-z]* r{n + 1} [^{chr(97 + n % 26)}]* | r{n + 1} r{n + 1}" for n in range(200)),
        'r200 ::= "x"',
    ]
)
# Harmless for the first 600 digits; each letter after them can be read in ever more ways.
SLOW_LATE = 'root ::= [0-9]{300} "x" e\ne ::= e e | "a" | "b" | e "a" e | e e e\n'


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(DEMO)


@pytest.fixture(scope="module")
def shared(tokenizer: Tokenizer) -> Iterator[GrammarCompiler]:
    """For tests that don't change it: its fork server is slow to start."""
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


def process_of(compiled: CompiledOutput) -> psutil.Process:
    return psutil.Process(compiled.link.pid)


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


async def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it has not come true"
        await asyncio.sleep(0.01)


# Compiling


def hostile(
    grammar_compiler: GrammarCompiler, number: int, tenant: str = ""
) -> list[asyncio.Task[CompiledOutput]]:
    """Compilations that never end, all different."""
    return [
        asyncio.create_task(grammar_compiler.compile(grammar(f"{ENDLESS}\n# {n}"), tenant))
        for n in range(number)
    ]


async def end(tasks: list[asyncio.Task[CompiledOutput]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_grammar_that_never_compiles_is_refused_after_its_time(
    make: Callable[..., GrammarCompiler],
) -> None:
    grammar_compiler = make(limits=Limits(compile_s=0.5))
    with pytest.raises(
        InvalidRequest, match=r"grammar takes longer than 0\.5 s to compile: simplify it"
    ) as raised:
        await grammar_compiler.compile(grammar(ENDLESS))
    assert raised.value.param == "structured_outputs.grammar"


async def test_a_grammar_that_never_compiles_is_refused_though_it_gets_no_processor(
    make: Callable[..., GrammarCompiler],
) -> None:
    grammar_compiler = make(limits=Limits(wall_s=0.5))
    with pytest.raises(InvalidRequest, match=r"longer than 0\.5 s"):
        await grammar_compiler.compile(grammar(ENDLESS))


@pytest.mark.parametrize("tenants", [("", ""), ("a", "b")], ids=["without keys", "with keys"])
async def test_a_schema_compiles_in_time_beside_a_flood_of_hostile_ones(
    tenants: tuple[str, str], make: Callable[..., GrammarCompiler]
) -> None:
    attacker, victim = tenants
    grammar_compiler = make()
    await grammar_compiler.compile(schema("warm"), victim)
    flood = hostile(grammar_compiler, 80, attacker)
    await asyncio.sleep(0)
    took = []
    for name in ("one", "two", "three", "four", "five"):
        begun = time.monotonic()
        await grammar_compiler.compile(schema(name), victim)
        took.append(time.monotonic() - begun)
    assert sorted(took)[1] < 1.0, took  # of five, as a machine that does other things takes its moments
    assert sum(task.done() for task in flood) < 80
    await end(flood)


async def test_of_too_many_slow_compilations_one_is_ended(
    make: Callable[..., GrammarCompiler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.structured.grammar_compiler._MAX_SLOW", 2)
    flood = hostile(make(), 4)
    done, rest = await asyncio.wait(flood, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    [error] = {str(task.exception()) for task in done if isinstance(task.exception(), CompilerBusy)}
    assert "takes long to compile, and so do too many others" in error
    await end(list(rest))


async def test_a_cancelled_request_frees_the_process_unless_others_wait_for_it(
    make: Callable[..., GrammarCompiler],
) -> None:
    grammar_compiler = make()
    first = process_of(await grammar_compiler.compile(schema("warm"))).parent()
    assert first is not None
    one, other = (asyncio.create_task(grammar_compiler.compile(grammar(ENDLESS))) for _ in range(2))
    await until(lambda: len(first.children()) == 2)
    await end([one])
    await asyncio.sleep(0.1)
    assert len(first.children()) == 2 and not other.done()
    await end([other])
    await until(lambda: len(first.children()) == 1)


async def test_a_flood_evicts_its_own_grammars_and_no_others(make: Callable[..., GrammarCompiler]) -> None:
    grammar_compiler = make(max_cache_bytes=30 * 2**20)
    mine = await grammar_compiler.compile(schema("mine"), "me")
    for name in "abcd":
        await grammar_compiler.compile(schema(name), "flood")
    assert await grammar_compiler.compile(schema("mine"), "me") is mine


async def test_tenants_share_no_process(shared: GrammarCompiler) -> None:
    mine = await shared.compile(schema("a"), "me")
    assert await shared.compile(schema("a"), "me") is mine
    yours = await shared.compile(schema("a"), "you")
    assert process_of(mine).pid != process_of(yours).pid


# Masks


async def test_a_mask_that_takes_too_long_ends_its_sequence(make: Callable[..., GrammarCompiler]) -> None:
    grammar_compiler = make(limits=Limits(mask_s=0.05))
    compiled = await grammar_compiler.compile(grammar(SLOW_LATE))
    with pytest.raises(InvalidRequest, match=r"takes too long to follow: .* more than 0\.05 s\. Simplify"):
        follow(grammar_compiler, compiled, steps=700)


async def test_a_process_that_does_not_answer_in_time_is_ended(make: Callable[..., GrammarCompiler]) -> None:
    grammar_compiler = make()
    compiled = await grammar_compiler.compile(schema("a"))
    process = process_of(compiled)
    process.suspend()
    constraint = grammar_compiler.constraint(compiled)
    assert not constraint.wait(0.05)
    compiled.link._limits = Limits(wall_s=0.1)
    await until(lambda: constraint.wait(0.0))
    with pytest.raises(InvalidRequest, match=r"has not answered within 0\.1 s"):
        constraint.fill_mask(torch.zeros(1, 96, dtype=torch.int32), 0)
    await until(lambda: is_gone(process))
    again = await grammar_compiler.compile(schema("a"))  # the cache gives no dead ones
    follow(grammar_compiler, again, steps=1)


async def test_many_slow_masks_end_their_request_too(make: Callable[..., GrammarCompiler]) -> None:
    grammar_compiler = make(limits=Limits(mask_s=10.0, slow_masks_s=0.2))
    compiled = await grammar_compiler.compile(grammar(SLOW_LATE))
    with pytest.raises(InvalidRequest, match=r"its slow steps have taken more than 0\.2 s"):
        follow(grammar_compiler, compiled, steps=700)
    await until(lambda: 10 in niceness(process_of(compiled)))  # and the processors are others' first


async def test_a_grammar_that_compiled_slowly_gives_masks_promptly(
    shared: GrammarCompiler,
) -> None:
    slow = {
        "type": "object",
        "properties": {f"p{n}": {"type": "string", "maxLength": 200} for n in range(40)},
    }
    wanted = StructuredOutput(StructuredKind.JSON_SCHEMA, json.dumps(slow), "response_format")
    compiled = await shared.compile(wanted)
    await until(lambda: set(niceness(process_of(compiled))) == {0})  # the compiling thread is no longer used


def niceness(process: psutil.Process) -> list[int]:
    """The niceness of each thread."""
    return sorted(os.getpriority(os.PRIO_PROCESS, thread.id) for thread in process.threads())


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads can't be kept to some processors")
async def test_slow_work_shares_a_quarter_of_the_processors(
    make: Callable[..., GrammarCompiler],
) -> None:
    grammar_compiler = make(limits=Limits(mask_s=10.0, slow_masks_s=0.2))
    followed = await grammar_compiler.compile(grammar(SLOW_LATE))
    with pytest.raises(InvalidRequest, match=r"its slow steps have taken more than 0\.2 s"):
        follow(grammar_compiler, followed, steps=700)
    await until(lambda: slow_threads(process_of(followed)) != [])
    flood = hostile(grammar_compiler, 3)
    first = process_of(followed).parent()
    assert first is not None
    await until(lambda: all(slow_threads(one) for one in first.children()) and len(first.children()) == 4)
    shares = [
        os.sched_getaffinity(thread) for process in first.children() for thread in slow_threads(process)
    ]
    await end(flood)
    processors = os.sched_getaffinity(0)
    assert set().union(*shares) <= processors and len(set().union(*shares)) == max(1, len(processors) // 4)


def slow_threads(process: psutil.Process) -> list[int]:
    """The deprioritised threads."""
    return [one.id for one in process.threads() if os.getpriority(os.PRIO_PROCESS, one.id) == 10]


def follow(grammar_compiler: GrammarCompiler, compiled: CompiledOutput, steps: int) -> None:
    """Repeatedly take the allowed token with the highest id, except the end token."""
    constraint = grammar_compiler.constraint(compiled)
    end = grammar_compiler._eos_token_ids[0]
    for _ in range(steps):
        mask = torch.full((1, -(-grammar_compiler._vocab_size // 32)), -1, dtype=torch.int32)
        constraint.fill_mask(mask, 0)
        tokens = allowed_by(mask, grammar_compiler._vocab_size)
        constraint.accept(next(token for token in reversed(tokens) if token != end))


def allowed_by(mask: torch.Tensor, vocab_size: int) -> list[int]:
    bits = (mask[0][:, None] >> torch.arange(32)) & 1
    return bits.flatten()[:vocab_size].nonzero().flatten().tolist()


SOURCES = {
    StructuredKind.JSON_SCHEMA: '{"type": "object", "properties": {"a": {"type": "string", "maxLength": 5}}}',
    StructuredKind.JSON_OBJECT: "",
    StructuredKind.REGEX: "[a-c]{2,5}(x|yz)*",
    StructuredKind.CHOICE: '["yes", "no", "perhaps"]',
    StructuredKind.GRAMMAR: 'root ::= "a" root "b" | "c"',
}


@pytest.mark.parametrize("kind", SOURCES)
async def test_masks_equal_those_of_the_compiler_in_this_process(
    kind: StructuredKind, shared: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    from xgrammar import GrammarCompiler, GrammarMatcher

    wanted = StructuredOutput(kind, SOURCES[kind], "x")
    vocab_size, eos = shared._vocab_size, shared._eos_token_ids
    compiler = GrammarCompiler(read_vocabulary(tokenizer, vocab_size, eos).tokenizer_info(), max_threads=1)
    constraints = [shared.constraint(await shared.compile(wanted)) for _ in range(2)]
    matchers = [GrammarMatcher(compile_grammar(compiler, wanted, vocab_size, eos)) for _ in constraints]
    chance = random.Random(0)
    for _ in range(30):
        for constraint, matcher in zip(constraints, matchers, strict=True):  # two outputs, side by side
            if constraint.is_finished:
                assert matcher.is_terminated()
                continue
            actual, expected = (
                torch.full((1, -(-vocab_size // 32)), -1, dtype=torch.int32) for _ in range(2)
            )
            assert constraint.fill_mask(actual, 0) == matcher.fill_next_token_bitmask(expected)
            assert torch.equal(actual, expected)
            token = chance.choice(allowed_by(actual, vocab_size))
            constraint.accept(token)
            assert matcher.accept_token(token)


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


async def test_rows_are_reused(shared: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = await shared.compile(schema("a"))
    for _ in range(600):  # more than there are rows
        mask = torch.full((1, -(-shared._vocab_size // 32)), -1, dtype=torch.int32)
        assert shared.constraint(compiled).fill_mask(mask, 0) and mask.any()


# Lives


async def test_a_killed_process_ends_its_sequences_and_nothing_else(
    make: Callable[..., GrammarCompiler],
) -> None:
    grammar_compiler = make()
    broken, whole = [await grammar_compiler.compile(schema(name)) for name in "ab"]
    process_of(broken).kill()
    await until(lambda: not broken.link.is_alive)
    with pytest.raises(InvalidRequest, match=r"process that follows .* has ended\. .* more than 512 MiB"):
        follow(grammar_compiler, broken, steps=1)
    follow(grammar_compiler, whole, steps=1)
    follow(grammar_compiler, await grammar_compiler.compile(schema("a")), steps=1)


async def test_no_grammar_is_blamed_when_the_fork_server_ends(
    make: Callable[..., GrammarCompiler],
) -> None:
    grammar_compiler = make()
    compiled = await grammar_compiler.compile(schema("a"))
    first = process_of(compiled).parent()
    assert first is not None
    first.kill()
    await until(lambda: not compiled.link.is_alive)
    with pytest.raises(GenerationFailed, match="like all others: try again"):
        follow(grammar_compiler, compiled, steps=1)


async def test_the_fork_server_is_restarted_if_it_is_killed(
    make: Callable[..., GrammarCompiler],
) -> None:
    grammar_compiler = make()
    compiled = await grammar_compiler.compile(schema("a"))
    first = process_of(compiled).parent()
    assert first is not None
    first.kill()
    await until(lambda: not compiled.link.is_alive)  # with it, those that it has forked
    for name in "ab":
        follow(grammar_compiler, await grammar_compiler.compile(schema(name)), steps=1)


async def test_processes_are_bounded_and_inherit_nothing_of_the_engine(shared: GrammarCompiler) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.set_inheritable(listener.fileno(), True)
        process = process_of(await shared.compile(schema("a")))
        first = process.parent()
        assert first is not None
        assert first.num_threads() == 1  # else it could not fork
        limit, _ = process.rlimit(psutil.RLIMIT_AS)
        assert 0 < limit < 2**31
        for one in (process, first):
            assert one.net_connections() == []  # no socket of the network, and so no port
            score = Path(f"/proc/{one.pid}/oom_score_adj").read_text()
            assert int(score) > 0  # before the engine, if memory ends


async def test_processes_ignore_signals_for_the_engines_group(
    shared: GrammarCompiler,
) -> None:
    compiled = await shared.compile(schema("a"))
    process = process_of(compiled)
    first = process.parent()
    assert first is not None
    for one in (process, first):
        for signum in (signal.SIGTERM, signal.SIGINT):
            one.send_signal(signum)
    follow(shared, compiled, steps=1)  # a request that the engine finishes before it stops


async def test_an_unused_grammar_leaves_no_process(
    make: Callable[..., GrammarCompiler],
) -> None:
    grammar_compiler = make(max_cache_bytes=0)
    compiled = await grammar_compiler.compile(schema("a"))
    process = process_of(compiled)
    follow(grammar_compiler, compiled, steps=1)
    del compiled
    await until(lambda: is_gone(process))


def test_all_processes_end_with_the_engine_however_it_ends() -> None:
    """Even while one of them is busy compiling."""
    program = textwrap.dedent(
        """
        import asyncio, os, signal, sys
        from tests.engine.structured.test_grammar_processes import DEMO, ENDLESS, grammar, process_of, schema
        from engine.structured import GrammarCompiler
        from engine.text.tokenizer import load_tokenizer
        async def main():
            tokenizer = load_tokenizer(DEMO)
            grammar_compiler = GrammarCompiler(tokenizer, vocab_size=tokenizer.vocab_size, eos_token_ids=[1])
            process = process_of(await grammar_compiler.compile(schema("a")))
            busy = asyncio.create_task(grammar_compiler.compile(grammar(ENDLESS)))
            await asyncio.sleep(0.3)
            first = process.parent()
            print(first.pid, *[child.pid for child in first.children()], flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(main())
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert result.returncode == -signal.SIGKILL
    pids = [int(word) for word in result.stdout.split()]
    assert len(pids) >= 3
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and not is_gone(psutil.Process(pid)) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)
