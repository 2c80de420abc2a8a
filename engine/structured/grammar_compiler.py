"""Compiles specifications of outputs, equal ones once, in processes that can be killed."""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.core.types import TokenConstraint
from engine.errors import InvalidRequest
from engine.structured.compile_turns import NO_TENANT, CompilerBusy, CompileTurns, Turn, most_frequent
from engine.structured.constraints import GrammarConstraint, ReasoningConstraint
from engine.structured.grammar_link import GrammarLink
from engine.structured.spec import ReasoningDelimiters, StructuredOutput
from engine.structured.vocabulary import read_vocabulary
from engine.structured.wire import MAX_EXTRA_BYTES, Limits
from engine.structured.workers import Workers

if TYPE_CHECKING:
    from engine.text.tokenizer import Tokenizer

MAX_SOURCE_CHARS = 256 * 1024
_PROCESS_BYTES = 8 * 2**20  # private memory of each: 4 MiB with a vocabulary of 3k, 12 with one of 152k
_MAX_ALIVE = 128  # processes, including those that compile and those that sequences still follow
_MAX_CACHE_BYTES = 256 * 2**20
_NUM_TURNS = 4
_MAX_SLOW = 8  # slow compilations beside them
_MAX_WAITING = 64


@dataclass(frozen=True, slots=True)
class CompiledOutput:
    link: GrammarLink
    num_bytes: int


_Key = tuple[str, StructuredOutput]


class GrammarCompiler:
    """Compiles for one model. The fork server, slow to start, starts with the first request that needs it."""

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
        self._compiled: OrderedDict[_Key, CompiledOutput] = OrderedDict()  # the most recently used last
        self._compiling: dict[_Key, asyncio.Task[CompiledOutput]] = {}
        self._num_waiting: Counter[_Key] = Counter()  # requests that wait for each compilation
        self._alive: weakref.WeakKeyDictionary[GrammarLink, str] = weakref.WeakKeyDictionary()  # → tenant

    async def compile(self, wanted: StructuredOutput, tenant: str = NO_TENANT) -> CompiledOutput:
        """Raises InvalidRequest for what can't be compiled, can't be enforced, or takes too long.

        Raises CompilerBusy if too many others wait. Tenants share neither processes, which one could slow
        down for another, nor more than their part of the compiler's time.
        """
        if len(wanted.source) > MAX_SOURCE_CHARS:
            raise InvalidRequest(
                f"{wanted.param} has {len(wanted.source)} characters; the limit is {MAX_SOURCE_CHARS}.",
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
            task.add_done_callback(lambda done: self._on_compiled(key, done))
        self._num_waiting[key] += 1
        try:
            return await asyncio.shield(task)  # others may wait for the same
        finally:
            self._num_waiting[key] -= 1
            if not self._num_waiting[key]:
                del self._num_waiting[key]
                task.cancel()  # the last waiting request has left; no effect if the task is done

    def close(self) -> None:
        """End all processes; they also end with the engine."""
        self._workers.close()

    @property
    def cached_bytes(self) -> int:
        return sum(compiled.num_bytes for compiled in self._compiled.values())

    def _on_compiled(self, key: _Key, done: asyncio.Task[CompiledOutput]) -> None:
        del self._compiling[key]
        if done.cancelled() or done.exception() is not None:
            return
        self._compiled[key] = done.result()
        while self.cached_bytes > self._max_cache_bytes:
            self._evict_one()

    def _evict_one(self) -> None:
        """Evict the least recently used of the tenant with the most."""
        tenant = most_frequent(tenant for tenant, _ in self._compiled)
        del self._compiled[next(key for key in self._compiled if key[0] == tenant)]

    async def _compile(self, wanted: StructuredOutput, tenant: str) -> CompiledOutput:
        turn = await self._turns.begin(tenant)
        try:
            self._limit_processes(tenant)
            link = await asyncio.to_thread(GrammarLink, self._workers, self._vocab_size, self._limits)
            self._alive[link] = tenant
            try:
                return _read_outcome(link, await self._wait_for(link, wanted, turn))
            except BaseException:  # also cancelled
                link.end("The grammar was not compiled.")
                raise
        finally:
            self._turns.end(turn)

    def _limit_processes(self, tenant: str) -> None:
        """Evict cached processes if there are too many. Raises CompilerBusy if too many are in use."""
        while len(self._alive) >= _MAX_ALIVE and self._compiled:
            self._evict_one()
        own = sum(owner == tenant for owner in self._alive.values()) if tenant != NO_TENANT else 0
        if len(self._alive) >= _MAX_ALIVE or own >= _MAX_ALIVE // 2:
            raise CompilerBusy("Too many different schemas and grammars are in use: try again later.")

    async def _wait_for(self, link: GrammarLink, wanted: StructuredOutput, turn: Turn) -> dict[str, Any]:
        """The process's reply. Raises InvalidRequest and CompilerBusy if it takes too long."""
        compiling = asyncio.create_task(link.compile(wanted, lambda: self._turns.become_slow(turn)))
        turn_over = asyncio.create_task(turn.is_over.wait())
        both = (compiling, turn_over)
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
                f"{wanted.param} can't be compiled: its process has ended, because of a compiler fault or "
                f"because it needs more than its {MAX_EXTRA_BYTES >> 20} MiB of memory: simplify it.",
                param=wanted.param,
            ) from error
        finally:
            for task in both:
                task.cancel()
        if turn_over in done:
            raise CompilerBusy(
                f"{wanted.param} takes long to compile, and so do too many others: simplify it, or try again "
                "later."
            )
        raise InvalidRequest(
            f"{wanted.param} takes longer than {self._limits.wall_s:g} s to compile: simplify it, or try "
            "again when the server is less busy.",
            param=wanted.param,
        )

    def constraint(
        self,
        compiled: CompiledOutput | None,
        delimiters: ReasoningDelimiters | None = None,
        *,
        budget: int | None = None,
    ) -> TokenConstraint:
        """For one sequence: `compiled` (None = anything), after reasoning if there are delimiters."""
        inner = None if compiled is None else GrammarConstraint(compiled.link, self._eos_token_ids)
        if delimiters is not None:
            return ReasoningConstraint(
                delimiters, inner=inner, budget=budget, eos_token_ids=self._eos_token_ids
            )
        if inner is None:
            raise ValueError("Neither a grammar nor reasoning delimiters: there is nothing to constrain.")
        return inner


def _read_outcome(link: GrammarLink, reply: dict[str, Any]) -> CompiledOutput:
    if "refused" in reply:
        raise InvalidRequest(reply["refused"], param=reply["param"])
    return CompiledOutput(link, reply["num_bytes"] + _PROCESS_BYTES)
