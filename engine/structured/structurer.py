"""Compiles what outputs must be, once for equal ones, off the event loop."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import InvalidRequest
from engine.structured.constraints import GrammarConstraint, ThinkingConstraint
from engine.structured.json_schema import follow_json_schema
from engine.structured.spec import StructuredKind, StructuredOutput, ThinkingMarks
from engine.structured.vocabulary import tokenizer_info
from engine.tokenizer import Tokenizer
from engine.types import TokenConstraint

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar, GrammarCompiler

MAX_SOURCE_CHARS = 256 * 1024
_MAX_CACHED = 256
_MAX_CACHE_BYTES = 256 * 2**20
_TIMEOUT_S = 30.0
_NUM_THREADS = 2  # an endless compilation holds one: others can go on
_MAX_WHITESPACE = 16  # characters between two JSON tokens: enough to indent, and no endless line of blanks


@dataclass(frozen=True, slots=True)
class CompiledOutput:
    grammar: CompiledGrammar


class Structurer:
    """Of one model. The compiler, slow to import, comes with the first request that asks for it."""

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """`vocab_size` is the logits' width; ids beyond the tokenizer's are never allowed."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="structured")
        self._compiler: GrammarCompiler | None = None
        self._cached: OrderedDict[StructuredOutput, Future[CompiledOutput]] = OrderedDict()

    async def compile(self, wanted: StructuredOutput) -> CompiledOutput:
        """Raises InvalidRequest for what can't be compiled, can't be followed, or takes too long."""
        if len(wanted.source) > MAX_SOURCE_CHARS:
            raise InvalidRequest(
                f"{wanted.param} has {len(wanted.source)} characters; {MAX_SOURCE_CHARS} are possible.",
                param=wanted.param,
            )
        future = self._cached.get(wanted)
        if future is None:
            future = self._pool.submit(self._compile, wanted)
            self._cached[wanted] = future
            while len(self._cached) > _MAX_CACHED:
                self._cached.popitem(last=False)
        self._cached.move_to_end(wanted)
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), _TIMEOUT_S)
        except TimeoutError as error:
            raise InvalidRequest(
                f"{wanted.param} takes longer than {_TIMEOUT_S:g} s to compile: simplify it.",
                param=wanted.param,
            ) from error
        except InvalidRequest:
            self._cached.pop(wanted, None)
            raise

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

    def _compile(self, wanted: StructuredOutput) -> CompiledOutput:
        """In a thread of the pool."""
        try:
            return CompiledOutput(self._compile_kind(wanted))
        except InvalidRequest:
            raise
        except (
            Exception
        ) as error:  # the compiler's errors are RuntimeError, and whatever pybind makes of others
            told = str(error).splitlines()[0][-500:] if str(error) else type(error).__name__
            raise InvalidRequest(f"{wanted.param} can't be compiled: {told}", param=wanted.param) from error

    def _compile_kind(self, wanted: StructuredOutput) -> CompiledGrammar:
        compiler = self._get_compiler()
        match wanted.kind:
            case StructuredKind.JSON_SCHEMA:
                schema = follow_json_schema(_parse(wanted), wanted.param)
                return compiler.compile_json_schema(
                    json.dumps(schema), any_whitespace=True, max_whitespace_cnt=_MAX_WHITESPACE
                )
            case StructuredKind.JSON_OBJECT:
                return compiler.compile_json_schema(
                    '{"type":"object"}',
                    any_whitespace=True,
                    max_whitespace_cnt=_MAX_WHITESPACE,
                    strict_mode=False,
                )
            case StructuredKind.REGEX:
                return compiler.compile_regex(wanted.source)
            case StructuredKind.CHOICE:
                choices = " | ".join(json.dumps(choice) for choice in _parse(wanted))
                return compiler.compile_grammar(f"root ::= {choices}")
            case StructuredKind.GRAMMAR:
                return compiler.compile_grammar(wanted.source)
            case StructuredKind.STRUCTURAL_TAG:
                return compiler.compile_structural_tag(json.dumps(_bound_whitespace(_parse(wanted))))

    def _get_compiler(self) -> GrammarCompiler:
        if self._compiler is None:
            from xgrammar import GrammarCompiler

            info = tokenizer_info(self._tokenizer, self._vocab_size, self._eos_token_ids)
            self._compiler = GrammarCompiler(info, max_threads=1, cache_limit_bytes=_MAX_CACHE_BYTES)
        return self._compiler


def _bound_whitespace(tag: Any) -> Any:
    """A structural tag whose schemas leave no more white space free than a schema alone."""
    if isinstance(tag, list):
        return [_bound_whitespace(part) for part in tag]
    if not isinstance(tag, dict):
        return tag
    # Not within the schema: there, the same words are names of properties.
    bounded = {name: part if name == "json_schema" else _bound_whitespace(part) for name, part in tag.items()}
    if tag.get("type") == "json_schema":
        bounded.setdefault("max_whitespace_cnt", _MAX_WHITESPACE)
    return bounded


def _parse(wanted: StructuredOutput) -> Any:
    try:
        return json.loads(wanted.source)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{wanted.param} is no JSON: {error}", param=wanted.param) from error
