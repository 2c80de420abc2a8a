"""Compiles specifications of outputs, equal ones once, in a few threads that don't hold up others."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from engine.core.own_process import only_here
from engine.core.types import TokenConstraint
from engine.errors import InvalidRequest
from engine.structured import limits as most
from engine.structured.compile_turns import NO_TENANT, CompileTurns, most_frequent
from engine.structured.constraints import GrammarConstraint, ReasoningConstraint
from engine.structured.limits import MAX_SOURCE_CHARS, Limits
from engine.structured.matching import CompiledOutput, Follower, Lanes, is_too_large, one_line
from engine.structured.spec import ReasoningDelimiters, StructuredOutput
from engine.structured.vocabulary import read_vocabulary
from engine.structured.writers import Writers

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    from engine.text.tokenizer import Tokenizer

_MAX_CACHED = 64
_NUM_TURNS = 4
_MAX_WAITING = 64
_NUM_STEPS = 32  # of the walk that validates a grammar
_NICENESS = 10


_Key = tuple[str, StructuredOutput]


class GrammarCompiler:
    """Compiles for one model. The vocabulary is read with the first request that needs it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        max_cached: int = _MAX_CACHED,
        limits: Limits | None = None,
    ) -> None:
        """`vocab_size` is the logits' width; ids beyond the tokenizer's are never allowed."""
        self._read_tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._limits = limits or Limits()
        self._max_cached = max_cached
        self._turns = CompileTurns(num_turns=_NUM_TURNS, max_waiting=_MAX_WAITING)
        self._threads = ThreadPoolExecutor(_NUM_TURNS, "grammars", initializer=_deprioritise)
        self._writers = Writers(self._limits.write_s)
        self._lanes = Lanes()
        self._vocabulary: LLTokenizer | None = None
        self._lock = threading.Lock()
        self.close = weakref.finalize(self, only_here(_close), self._threads, self._writers, self._lanes)
        self._compiled: OrderedDict[_Key, CompiledOutput] = OrderedDict()  # the most recently used last
        self._compiling: dict[_Key, asyncio.Task[CompiledOutput]] = {}
        self._num_waiting: Counter[_Key] = Counter()  # requests that wait for each compilation

    async def compile(self, wanted: StructuredOutput, tenant: str = NO_TENANT) -> CompiledOutput:
        """Raises InvalidRequest for what can't be compiled or enforced, and CompilerBusy if too many wait."""
        if len(wanted.source) > MAX_SOURCE_CHARS:
            raise InvalidRequest(
                f"{wanted.param} has {len(wanted.source)} characters; the limit is {MAX_SOURCE_CHARS}.",
                param=wanted.param,
            )
        key = (tenant, wanted)
        if key in self._compiled:
            self._compiled.move_to_end(key)
            return self._compiled[key]
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

    def _on_compiled(self, key: _Key, done: asyncio.Task[CompiledOutput]) -> None:
        del self._compiling[key]
        if done.cancelled() or done.exception() is not None:
            return
        self._compiled[key] = done.result()
        while len(self._compiled) > self._max_cached:
            self._evict_one()

    def _evict_one(self) -> None:
        """Evict the least recently used of the tenant with the most."""
        tenant = most_frequent(tenant for tenant, _ in self._compiled)
        del self._compiled[next(key for key in self._compiled if key[0] == tenant)]

    async def _compile(self, wanted: StructuredOutput, tenant: str) -> CompiledOutput:
        turn = await self._turns.begin(tenant)
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._compile_now, wanted, tenant)
        finally:
            self._turns.end(turn)

    def _compile_now(self, wanted: StructuredOutput, tenant: str) -> CompiledOutput:
        from llguidance import LLMatcher

        grammar = self._writers.write(wanted)
        matcher = LLMatcher(self._tokenizer(), grammar, log_level=0, limits=_parser_limits())
        if matcher.is_error():
            raise _refusal(matcher.get_error(), wanted.param)
        self._validate(matcher, wanted.param)
        return CompiledOutput(matcher, wanted.param, tenant)

    def _validate(self, matcher: LLMatcher, param: str) -> None:
        """A short random walk. Raises InvalidRequest for a grammar that is slow or reaches a dead end."""
        import numpy as np

        walker = matcher.deep_copy()
        mask = np.zeros(-(-self._tokenizer().vocab_size // 32), np.int32)
        draw = random.Random(0)  # noqa: S311 - the same walk each time
        for _ in range(_NUM_STEPS):
            walker.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if walker.is_error():
                raise _refusal(walker.get_error(), param)
            token = _choose(mask[: self._num_words].tolist(), self._eos_token_ids, draw)
            if token is None:
                if walker.is_accepting():
                    return
                raise InvalidRequest(
                    f"{param} can't be enforced: it matches no finite text, or none that the model's tokens "
                    "can spell.",
                    param=param,
                )
            if not walker.consume_token(token) or walker.is_stopped():
                return

    @property
    def _num_words(self) -> int:
        return -(-self._vocab_size // 32)

    def _tokenizer(self) -> LLTokenizer:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = read_vocabulary(
                    self._read_tokenizer, self._vocab_size, self._eos_token_ids
                )
            return self._vocabulary

    def constraint(
        self,
        compiled: CompiledOutput | None,
        delimiters: ReasoningDelimiters | None = None,
        *,
        budget: int | None = None,
    ) -> TokenConstraint:
        """For one sequence: `compiled` (None = anything), after reasoning if there are delimiters."""
        inner = None if compiled is None else GrammarConstraint(self._follow(compiled), self._eos_token_ids)
        if delimiters is not None:
            return ReasoningConstraint(
                delimiters, inner=inner, budget=budget, eos_token_ids=self._eos_token_ids
            )
        if inner is None:
            raise ValueError("Neither a grammar nor reasoning delimiters: there is nothing to constrain.")
        return inner

    def _follow(self, compiled: CompiledOutput) -> Follower:
        num_tokens = self._tokenizer().vocab_size
        return Follower(compiled, self._lanes, self._num_words, num_tokens, self._limits)


def _parser_limits() -> LLParserLimits:
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_items_in_row=most.MAX_ROW_ITEMS,
        initial_lexer_fuel=most.LEXER_FUEL,
        step_lexer_fuel=most.STEP_LEXER_FUEL,
        step_max_items=most.MAX_STEP_ITEMS,
        max_lexer_states=most.MAX_LEXER_STATES,
        max_grammar_size=most.MAX_SYMBOLS,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


def _refusal(error: str, param: str) -> InvalidRequest:
    if is_too_large(error):
        return InvalidRequest(
            f"{param} is too large, or can be read in too many ways: simplify it (nested counts and "
            f"ambiguous parts cost most). The compiler says: {one_line(error)}",
            param=param,
        )
    return InvalidRequest(f"{param} can't be compiled: {one_line(error)}", param=param)


def _close(threads: ThreadPoolExecutor, writers: Writers, lanes: Lanes) -> None:
    threads.shutdown(wait=False, cancel_futures=True)
    writers.close()
    lanes.close()


def _deprioritise() -> None:
    with suppress(OSError, AttributeError):  # only Linux has priorities of threads
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _choose(words: list[int], eos_token_ids: Sequence[int], draw: random.Random) -> int | None:
    """A random token whose bit is set, but no end token; None if there is none."""
    for token in eos_token_ids:
        words[token // 32] &= ~(1 << token % 32)
    filled = [index for index, word in enumerate(words) if word & 0xFFFFFFFF]
    if not filled:
        return None
    index = draw.choice(filled)
    return index * 32 + draw.choice([bit for bit in range(32) if words[index] >> bit & 1])
