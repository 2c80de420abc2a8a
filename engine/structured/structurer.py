"""Compiles what outputs must be, once for equal ones, off the event loop."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, InvalidRequest
from engine.structured.compile_threads import CompileThreads
from engine.structured.constraints import GrammarConstraint, ThinkingConstraint
from engine.structured.json_schema import follow_json_schema
from engine.structured.json_strings import plain_pattern
from engine.structured.regex import UnsupportedPattern
from engine.structured.spec import StructuredKind, StructuredOutput, ThinkingMarks
from engine.structured.string_rules import StringRules
from engine.structured.structural_tag import follow_structural_tag
from engine.structured.trial import try_out
from engine.structured.vocabulary import tokenizer_info
from engine.tokenizer import Tokenizer
from engine.types import TokenConstraint

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar, GrammarCompiler

MAX_SOURCE_CHARS = 256 * 1024
MAX_COMPILED_BYTES = 64 * 2**20  # of one; grows with what a grammar must tell apart
_MAX_CACHED = 256
_MAX_CACHE_BYTES = 256 * 2**20
_TIMEOUT_S = 10.0
_NUM_THREADS = 2
_MAX_STUCK = 2  # compilations that were given up, and go on until the process ends
_MAX_WAITING = 64
_MAX_WHITESPACE = 16  # characters between two JSON tokens: enough to indent, and no endless line of blanks


@dataclass(frozen=True, slots=True)
class CompiledOutput:
    grammar: CompiledGrammar
    num_bytes: int


class Structurer:
    """Of one model. The compiler, slow to import, comes with the first request that asks for it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        timeout_s: float = _TIMEOUT_S,
        max_cache_bytes: int = _MAX_CACHE_BYTES,
    ) -> None:
        """`vocab_size` is the logits' width; ids beyond the tokenizer's are never allowed."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._timeout_s = timeout_s
        self._max_cache_bytes = max_cache_bytes
        self._threads = CompileThreads(
            num_threads=_NUM_THREADS, max_stuck=_MAX_STUCK, max_waiting=_MAX_WAITING, timeout_s=timeout_s
        )
        self._compiler: GrammarCompiler | None = None
        self._compiler_lock = threading.Lock()
        self._compiled: OrderedDict[StructuredOutput, CompiledOutput] = OrderedDict()  # the latest used last
        self._compiling: dict[StructuredOutput, asyncio.Task[CompiledOutput]] = {}

    async def compile(self, wanted: StructuredOutput) -> CompiledOutput:
        """Raises InvalidRequest for what can't be compiled, can't be followed, or takes too long.

        Raises CompilerBusy where too many others wait for theirs.
        """
        if len(wanted.source) > MAX_SOURCE_CHARS:
            raise InvalidRequest(
                f"{wanted.param} has {len(wanted.source)} characters; {MAX_SOURCE_CHARS} are possible.",
                param=wanted.param,
            )
        if wanted in self._compiled:
            self._compiled.move_to_end(wanted)
            return self._compiled[wanted]
        task = self._compiling.get(wanted)
        if task is None:
            task = self._compiling[wanted] = asyncio.create_task(self._compile(wanted))
            task.add_done_callback(lambda done: self._compiled_one(wanted, done))
        return await asyncio.shield(task)  # who leaves doesn't take it from others that wait for the same

    def _compiled_one(self, wanted: StructuredOutput, done: asyncio.Task[CompiledOutput]) -> None:
        del self._compiling[wanted]
        if done.cancelled() or done.exception() is not None:
            return
        self._compiled[wanted] = done.result()
        while len(self._compiled) > _MAX_CACHED or self.cached_bytes > self._max_cache_bytes:
            self._compiled.popitem(last=False)

    @property
    def cached_bytes(self) -> int:
        return sum(compiled.num_bytes for compiled in self._compiled.values())

    async def _compile(self, wanted: StructuredOutput) -> CompiledOutput:
        compiler = await asyncio.to_thread(self._get_compiler)
        try:
            return await self._threads.run(lambda: self._compile_with(compiler, wanted))
        except TimeoutError as error:
            raise InvalidRequest(
                f"{wanted.param} takes longer than {self._timeout_s:g} s to compile: simplify it.",
                param=wanted.param,
            ) from error

    def constraint(
        self,
        compiled: CompiledOutput | None,
        marks: ThinkingMarks | None = None,
        *,
        budget: int | None = None,
    ) -> TokenConstraint:
        """For one sequence: what was compiled (None = anything), after a thought where there are marks."""
        inner = None if compiled is None else self._match(compiled)
        if marks is not None:
            return ThinkingConstraint(marks, inner=inner, budget=budget, eos_token_ids=self._eos_token_ids)
        if inner is None:
            raise ValueError("Neither a grammar nor marks of a thought: there is nothing to constrain.")
        return inner

    def _match(self, compiled: CompiledOutput) -> GrammarConstraint:
        from xgrammar import GrammarMatcher

        matcher = GrammarMatcher(compiled.grammar, terminate_without_stop_token=not self._eos_token_ids)
        return GrammarConstraint(matcher, self._eos_token_ids)

    def _compile_with(self, compiler: GrammarCompiler, wanted: StructuredOutput) -> CompiledOutput:
        """In a thread."""
        try:
            grammar = _compile_kind(compiler, wanted)
            compiled = CompiledOutput(grammar, grammar.memory_size_bytes)
            if compiled.num_bytes > MAX_COMPILED_BYTES:
                raise InvalidRequest(
                    f"{wanted.param} takes {compiled.num_bytes >> 20} MiB when compiled; "
                    f"{MAX_COMPILED_BYTES >> 20} are possible: simplify it.",
                    param=wanted.param,
                )
            try_out(grammar, self._vocab_size, self._eos_token_ids, wanted.param)
        except EngineError:
            raise
        except (
            Exception
        ) as error:  # the compiler's errors are RuntimeError, and whatever pybind makes of others
            raise InvalidRequest(
                f"{wanted.param} can't be compiled: {_told(error)}", param=wanted.param
            ) from error
        return compiled

    def _get_compiler(self) -> GrammarCompiler:
        with self._compiler_lock:
            if self._compiler is None:
                from xgrammar import GrammarCompiler

                info = tokenizer_info(self._tokenizer, self._vocab_size, self._eos_token_ids)
                self._compiler = GrammarCompiler(info, max_threads=1, cache_enabled=False)  # we have ours
        return self._compiler


def _compile_kind(compiler: GrammarCompiler, wanted: StructuredOutput) -> CompiledGrammar:
    from xgrammar import Grammar

    match wanted.kind:
        case StructuredKind.JSON_SCHEMA:
            rules = StringRules()
            schema = follow_json_schema(
                _parse(wanted), wanted.param, rules, is_strict=wanted.is_strict, advice=wanted.advice
            )
            grammar = Grammar.from_json_schema(json.dumps(schema), max_whitespace_cnt=_MAX_WHITESPACE)
            return compiler.compile_grammar(rules.insert(str(grammar)) if rules else grammar)
        case StructuredKind.JSON_OBJECT:
            return compiler.compile_json_schema(
                '{"type":"object"}', max_whitespace_cnt=_MAX_WHITESPACE, strict_mode=False
            )
        case StructuredKind.REGEX:
            try:
                return compiler.compile_regex(plain_pattern(wanted.source))
            except UnsupportedPattern as error:
                raise InvalidRequest(
                    f"{wanted.param} can't be followed: {error}.", param=wanted.param
                ) from error
        case StructuredKind.CHOICE:
            choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in _parse(wanted))
            return compiler.compile_grammar(f"root ::= {choices}")
        case StructuredKind.GRAMMAR:
            is_ebnf = "::=" in wanted.source
            return (compiler.compile_grammar if is_ebnf else compiler.compile_lark)(wanted.source)
        case StructuredKind.STRUCTURAL_TAG | StructuredKind.TOOL_CALLS:
            rules = StringRules()
            tag = follow_structural_tag(
                _parse(wanted),
                wanted.param,
                rules,
                max_whitespace=_MAX_WHITESPACE,
                is_ours=wanted.kind is StructuredKind.TOOL_CALLS,
            )
            grammar = Grammar.from_structural_tag(json.dumps(tag))
            return compiler.compile_grammar(rules.insert(str(grammar)) if rules else grammar)


def _told(error: Exception) -> str:
    """The compiler's words, without the place in its own sources."""
    said = next(iter(str(error).splitlines()), "") or type(error).__name__
    return re.sub(r"^\[[\d:]+\] \S+\.cc:\d+: ", "", said)[:500]


def _parse(wanted: StructuredOutput) -> Any:
    """Raises InvalidRequest for what is no JSON, or has text that is no Unicode."""
    try:
        value = json.loads(wanted.source)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{wanted.param} is no valid Unicode: it holds half of a surrogate pair.", param=wanted.param
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{wanted.param} is no JSON: {error}", param=wanted.param) from error
    return value
