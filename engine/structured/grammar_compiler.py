"""Compiles what outputs must be, once for equal ones, in processes that can be ended."""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.core.types import TokenConstraint
from engine.errors import InvalidRequest
from engine.structured.compile_turns import NOBODY, CompilerBusy, CompileTurns, Turn, greediest
from engine.structured.constraints import GrammarConstraint, ReasoningConstraint
from engine.structured.grammar_link import GrammarLink
from engine.structured.spec import ReasoningDelimiters, StructuredOutput
from engine.structured.vocabulary import read_vocabulary
from engine.structured.wire import MAX_EXTRA_BYTES, Limits
from engine.structured.workers import Workers

if TYPE_CHECKING:
    from engine.text.tokenizer import Tokenizer

MAX_SOURCE_CHARS = 256 * 1024
_PROCESS_BYTES = 8 * 2**20  # that each has for itself: 4 MiB with a vocabulary of 3k, 12 with one of 152k
_MAX_ALIVE = 128  # processes, with those that are compiling and those that are still followed
_MAX_CACHE_BYTES = 256 * 2**20
_NUM_TURNS = 4
_MAX_SLOW = 8  # compilations that go on beside them
_MAX_WAITING = 64


@dataclass(frozen=True, slots=True)
class CompiledOutput:
    link: GrammarLink
    num_bytes: int


_Key = tuple[str, StructuredOutput]


class GrammarCompiler:
    """Of one model. The compiler's processes, slow to start, come with the first request that asks for it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        max_cache_bytes: int = _MAX_CACHE_BYTES,
        limits: Limits | None = None,
    ) -> None:
        """`vocab_size` is the logits' width; ids beyond the tokenizer's are never allowed."""
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._limits = limits or Limits()
        self._max_cache_bytes = max_cache_bytes
        self._turns = CompileTurns(num_turns=_NUM_TURNS, max_slow=_MAX_SLOW, max_waiting=_MAX_WAITING)
        self._workers = Workers(lambda: read_vocabulary(tokenizer, vocab_size, eos_token_ids).to_json())
        self._compiled: OrderedDict[_Key, CompiledOutput] = OrderedDict()  # the latest used last
        self._compiling: dict[_Key, asyncio.Task[CompiledOutput]] = {}
        self._asking: Counter[_Key] = Counter()  # how many requests wait for each of them
        self._alive: weakref.WeakKeyDictionary[GrammarLink, str] = weakref.WeakKeyDictionary()  # → the tenant

    async def compile(self, wanted: StructuredOutput, tenant: str = NOBODY) -> CompiledOutput:
        """Raises InvalidRequest for what can't be compiled, can't be followed, or takes too long.

        Raises CompilerBusy where too many others wait for theirs. Tenants share nothing: neither a process,
        which one could make slow for the other, nor more than their part of the compiler's time.
        """
        if len(wanted.source) > MAX_SOURCE_CHARS:
            raise InvalidRequest(
                f"{wanted.param} has {len(wanted.source)} characters; {MAX_SOURCE_CHARS} are possible.",
                param=wanted.param,
            )
        key = (tenant, wanted)
        if key in self._compiled:
            if self._compiled[key].link.is_alive:
                self._compiled.move_to_end(key)
                return self._compiled[key]
            del self._compiled[key]
        task = self._compiling.get(key)
        if task is None:
            task = self._compiling[key] = asyncio.create_task(self._compile(wanted, tenant))
            task.add_done_callback(lambda done: self._compiled_one(key, done))
        self._asking[key] += 1
        try:
            return await asyncio.shield(task)  # others may wait for the same
        finally:
            self._asking[key] -= 1
            if not self._asking[key]:
                del self._asking[key]
                task.cancel()  # who was the last to wait has left, if it isn't done

    def close(self) -> None:
        """End all processes; the engine's end does so too."""
        self._workers.close()

    @property
    def cached_bytes(self) -> int:
        return sum(compiled.num_bytes for compiled in self._compiled.values())

    def _compiled_one(self, key: _Key, done: asyncio.Task[CompiledOutput]) -> None:
        del self._compiling[key]
        if done.cancelled() or done.exception() is not None:
            return
        self._compiled[key] = done.result()
        while self.cached_bytes > self._max_cache_bytes:
            self._forget_one()

    def _forget_one(self) -> None:
        """The one that was not used for longest, of the tenant that has most."""
        tenant = greediest(tenant for tenant, _ in self._compiled)
        del self._compiled[next(key for key in self._compiled if key[0] == tenant)]

    async def _compile(self, wanted: StructuredOutput, tenant: str) -> CompiledOutput:
        turn = await self._turns.begin(tenant)
        try:
            self._make_room(tenant)
            link = await asyncio.to_thread(GrammarLink, self._workers, self._vocab_size, self._limits)
            self._alive[link] = tenant
            try:
                return _read_outcome(link, await self._wait_for(link, wanted, turn))
            except BaseException:  # also cancelled
                link.end("It was not compiled.")
                raise
        finally:
            self._turns.end(turn)

    def _make_room(self, tenant: str) -> None:
        """Raises CompilerBusy if too many grammars are followed."""
        while len(self._alive) >= _MAX_ALIVE and self._compiled:
            self._forget_one()
        own = sum(one == tenant for one in self._alive.values()) if tenant != NOBODY else 0
        if len(self._alive) >= _MAX_ALIVE or own >= _MAX_ALIVE // 2:
            raise CompilerBusy("Too many different schemas and grammars are being followed: try again later.")

    async def _wait_for(self, link: GrammarLink, wanted: StructuredOutput, turn: Turn) -> dict[str, Any]:
        """What the process says. Raises InvalidRequest and CompilerBusy where it takes too long."""
        compiling = asyncio.create_task(link.compile(wanted, lambda: self._turns.become_slow(turn)))
        giving_way = asyncio.create_task(turn.is_over.wait())
        both = (compiling, giving_way)
        try:
            done, _ = await asyncio.wait(
                both, timeout=self._limits.wall_s, return_when=asyncio.FIRST_COMPLETED
            )
            if compiling in done:
                return await compiling
        except EOFError as error:
            if not self._workers.is_alive:
                raise CompilerBusy("The compiler of schemas and grammars has ended: try again.") from error
            raise InvalidRequest(
                f"{wanted.param} can't be compiled: its process has ended, by a fault of the compiler or for "
                f"want of more memory than the {MAX_EXTRA_BYTES >> 20} MiB that it may take: simplify it.",
                param=wanted.param,
            ) from error
        finally:
            for task in both:
                task.cancel()
        if giving_way in done:
            raise CompilerBusy(
                f"{wanted.param} takes long to compile, and too many others do: simplify it, or try again "
                "later."
            )
        raise InvalidRequest(
            f"{wanted.param} takes longer than {self._limits.wall_s:g} s to compile: simplify it, or try "
            "again when the server has less to do.",
            param=wanted.param,
        )

    def constraint(
        self,
        compiled: CompiledOutput | None,
        marks: ReasoningDelimiters | None = None,
        *,
        budget: int | None = None,
    ) -> TokenConstraint:
        """For one sequence: what was compiled (None = anything), after a thought where there are marks."""
        inner = None if compiled is None else GrammarConstraint(compiled.link, self._eos_token_ids)
        if marks is not None:
            return ReasoningConstraint(marks, inner=inner, budget=budget, eos_token_ids=self._eos_token_ids)
        if inner is None:
            raise ValueError("Neither a grammar nor marks of a thought: there is nothing to constrain.")
        return inner


def _read_outcome(link: GrammarLink, said: dict[str, Any]) -> CompiledOutput:
    if "refused" in said:
        raise InvalidRequest(said["refused"], param=said["param"])
    return CompiledOutput(link, said["num_bytes"] + _PROCESS_BYTES)
