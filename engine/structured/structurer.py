"""Compiles what outputs must be, once for equal ones, in processes that can be ended."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, InvalidRequest
from engine.structured.compile_turns import NOBODY, CompilerBusy, CompileTurns, Turn
from engine.structured.constraints import GrammarConstraint, ThinkingConstraint
from engine.structured.grammar_link import GrammarLink, MaskLimits
from engine.structured.spec import StructuredOutput, ThinkingMarks
from engine.structured.vocabulary import read_vocabulary
from engine.structured.workers import Workers
from engine.types import TokenConstraint

if TYPE_CHECKING:
    from engine.tokenizer import Tokenizer

MAX_SOURCE_CHARS = 256 * 1024
_MAX_CACHED = 64  # each is a process
_MAX_ALIVE = 128  # with those that are still followed
_MAX_CACHE_BYTES = 256 * 2**20
_NUM_TURNS = 4
_MAX_WAITING = 64
_FAIR_S = 1.0  # of compiling, while others wait
_START_S = 60.0
_LOOK_S = 0.1
_MAX_STRETCH = 3  # times the processor time that a compilation may have
_SLOW_S = 0.3  # of compiling; then the engine's steps come first
_REMEMBERED_S = 60.0  # that a source was too slow to compile


@dataclass(frozen=True, slots=True)
class CompiledOutput:
    link: GrammarLink
    num_bytes: int


_Key = tuple[str, StructuredOutput]


class Structurer:
    """Of one model. The compiler's processes, slow to start, come with the first request that asks for it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        timeout_s: float = 10.0,  # of processor time
        max_cache_bytes: int = _MAX_CACHE_BYTES,
        mask_limits: MaskLimits | None = None,
    ) -> None:
        """`vocab_size` is the logits' width; ids beyond the tokenizer's are never allowed."""
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._timeout_s = timeout_s
        self._max_cache_bytes = max_cache_bytes
        self._mask_limits = mask_limits or MaskLimits()
        self._turns = CompileTurns(num_turns=_NUM_TURNS, max_waiting=_MAX_WAITING, fair_s=_FAIR_S)
        self._workers = Workers(lambda: read_vocabulary(tokenizer, vocab_size, eos_token_ids).to_json())
        self._compiled: OrderedDict[_Key, CompiledOutput] = OrderedDict()  # the latest used last
        self._compiling: dict[_Key, asyncio.Task[CompiledOutput]] = {}
        self._alive: weakref.WeakKeyDictionary[GrammarLink, str] = weakref.WeakKeyDictionary()  # → the tenant
        self._spare: GrammarLink | None = None
        self._starting: asyncio.Task[None] | None = None
        self._is_closed = False
        self._too_slow: OrderedDict[StructuredOutput, float] = OrderedDict()  # → until when

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
        if self._too_slow.get(wanted, 0.0) > time.monotonic():
            raise self._too_slow_error(wanted)
        task = self._compiling.get(key)
        if task is None:
            task = self._compiling[key] = asyncio.create_task(self._compile(wanted, tenant))
            task.add_done_callback(lambda done: self._compiled_one(key, done))
        return await asyncio.shield(task)  # who leaves doesn't take it from others that wait for the same

    def close(self) -> None:
        """End all processes; the engine's end does so too."""
        self._is_closed = True
        self._workers.close()

    @property
    def cached_bytes(self) -> int:
        return sum(compiled.num_bytes for compiled in self._compiled.values())

    def _compiled_one(self, key: _Key, done: asyncio.Task[CompiledOutput]) -> None:
        del self._compiling[key]
        if self._spare is None and not self._compiling and not self._is_closed:
            threading.Thread(target=self._start_spare, name="structured", daemon=True).start()
        if done.cancelled() or done.exception() is not None:
            return
        self._compiled[key] = done.result()
        while len(self._compiled) > _MAX_CACHED or self.cached_bytes > self._max_cache_bytes:
            self._compiled.popitem(last=False)

    async def _compile(self, wanted: StructuredOutput, tenant: str) -> CompiledOutput:
        await self._start()
        turn = await self._turns.begin(tenant)
        try:
            self._make_room(tenant)
            link = await self._fresh_link()
            self._alive[link] = tenant
            try:
                return _read_outcome(link, await self._wait_for(link, wanted, turn))
            except BaseException:  # also cancelled
                link.end("It was not compiled.")
                raise
        finally:
            self._turns.end(turn)

    async def _start(self) -> None:
        """The first process takes a second or more; nobody's time to compile begins before it is there."""
        if self._starting is None or self._starting.done():
            if self._workers.is_alive:
                return
            self._starting = asyncio.create_task(self._start_first())
        await asyncio.shield(self._starting)

    async def _start_first(self) -> None:
        self._spare = await self._start_link()

    async def _fresh_link(self) -> GrammarLink:
        """The spare one, which has started already; the next spare one starts when this has compiled."""
        spare, self._spare = self._spare, None
        if spare is not None:
            with suppress(EOFError):
                await spare.started()
                if spare.is_alive:
                    return spare
        return await self._start_link()

    async def _start_link(self) -> GrammarLink:
        link = await asyncio.to_thread(self._make_link)
        try:
            await asyncio.wait_for(link.started(), _START_S)
        except (EOFError, TimeoutError) as error:
            link.end("It was not compiled.")
            raise EngineError(
                "The process that compiles schemas and grammars can't be started: see the engine's log."
            ) from error
        return link

    def _make_link(self) -> GrammarLink:
        return GrammarLink(self._workers, self._vocab_size, self._mask_limits)

    def _start_spare(self) -> None:
        """In a thread, which takes some milliseconds."""
        with suppress(EngineError, OSError):  # the next one that compiles will say it
            self._spare = self._make_link()

    def _make_room(self, tenant: str) -> None:
        """Raises CompilerBusy if too many grammars are followed."""
        while len(self._alive) >= _MAX_ALIVE and self._compiled:
            self._compiled.popitem(last=False)
        own = sum(one == tenant for one in self._alive.values()) if tenant != NOBODY else 0
        if len(self._alive) >= _MAX_ALIVE or own >= _MAX_ALIVE // 2:
            raise CompilerBusy("Too many different schemas and grammars are being followed: try again later.")

    async def _wait_for(self, link: GrammarLink, wanted: StructuredOutput, turn: Turn) -> dict[str, Any]:
        """What the process says. Raises InvalidRequest and CompilerBusy where it takes too long."""
        begun = time.monotonic()
        compiling = asyncio.create_task(link.compile(wanted))
        giving_way = asyncio.create_task(turn.is_over.wait())
        both = (compiling, giving_way)
        try:
            done, _ = await asyncio.wait(both, timeout=_SLOW_S, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                link.slow_compiler()
            while not done and not self._is_too_long(link, begun):
                done, _ = await asyncio.wait(both, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            if compiling in done:
                return await compiling
        except EOFError as error:
            if not self._workers.is_alive:
                raise CompilerBusy("The compiler of schemas and grammars has ended: try again.") from error
            raise InvalidRequest(
                f"{wanted.param} can't be compiled: its process has ended, for want of memory or by a fault "
                "of the compiler: simplify it.",
                param=wanted.param,
            ) from error
        finally:
            for task in both:
                task.cancel()
        if giving_way in done:
            raise CompilerBusy(
                f"{wanted.param} takes longer than {_FAIR_S:g} s to compile, and others wait: simplify it, "
                "or try again later."
            )
        self._remember_slow(wanted)
        raise self._too_slow_error(wanted)

    def _is_too_long(self, link: GrammarLink, begun: float) -> bool:
        """By its own time; where the processors are busy, it gets little of them."""
        passed = time.monotonic() - begun
        return link.processor_s() > self._timeout_s or passed > _MAX_STRETCH * self._timeout_s

    def _remember_slow(self, wanted: StructuredOutput) -> None:
        self._too_slow[wanted] = time.monotonic() + _REMEMBERED_S
        while len(self._too_slow) > _MAX_CACHED:
            self._too_slow.popitem(last=False)

    def _too_slow_error(self, wanted: StructuredOutput) -> InvalidRequest:
        return InvalidRequest(
            f"{wanted.param} takes longer than {self._timeout_s:g} s to compile: simplify it.",
            param=wanted.param,
        )

    def constraint(
        self,
        compiled: CompiledOutput | None,
        marks: ThinkingMarks | None = None,
        *,
        budget: int | None = None,
    ) -> TokenConstraint:
        """For one sequence: what was compiled (None = anything), after a thought where there are marks."""
        inner = None if compiled is None else GrammarConstraint(compiled.link, self._eos_token_ids)
        if marks is not None:
            return ThinkingConstraint(marks, inner=inner, budget=budget, eos_token_ids=self._eos_token_ids)
        if inner is None:
            raise ValueError("Neither a grammar nor marks of a thought: there is nothing to constrain.")
        return inner


def _read_outcome(link: GrammarLink, said: dict[str, Any]) -> CompiledOutput:
    if "refused" in said:
        raise InvalidRequest(said["refused"], param=said["param"])
    return CompiledOutput(link, said["num_bytes"])
