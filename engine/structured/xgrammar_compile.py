"""Compiles one grammar with xgrammar and validates it. Runs in the grammar's process, on its limits."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError, InvalidRequest
from engine.structured.grammar_validation import validate_grammar
from engine.structured.json_schema import normalise_json_schema
from engine.structured.json_strings import plain_pattern
from engine.structured.regex import UnsupportedPattern
from engine.structured.spec import StructuredKind, StructuredOutput
from engine.structured.string_rules import StringRules
from engine.structured.structural_tag import normalise_structural_tag

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar, GrammarCompiler

MAX_COMPILED_BYTES = 64 * 2**20  # of one grammar; grows with its number of states
_MAX_WHITESPACE = 16  # characters between two JSON tokens: enough to indent, but not endless blanks


def compile_grammar(
    compiler: GrammarCompiler, wanted: StructuredOutput, vocab_size: int, eos_token_ids: Sequence[int]
) -> CompiledGrammar:
    """Raises InvalidRequest for a grammar that can't be compiled or enforced."""
    try:
        grammar = _compile_kind(compiler, wanted)
        num_bytes = grammar.memory_size_bytes
        if num_bytes > MAX_COMPILED_BYTES:
            raise InvalidRequest(
                f"{wanted.param} takes {num_bytes >> 20} MiB when compiled; "
                f"at most {MAX_COMPILED_BYTES >> 20} are allowed: simplify it.",
                param=wanted.param,
            )
        validate_grammar(grammar, vocab_size, eos_token_ids, wanted.param)
    except (EngineError, MemoryError):
        raise
    except Exception as error:  # the compiler's RuntimeErrors, and what its binding turns others into
        if "bad_alloc" in str(error):
            raise MemoryError from error
        raise InvalidRequest(
            f"{wanted.param} can't be compiled: {_first_line(error)}", param=wanted.param
        ) from error
    return grammar


def _compile_kind(compiler: GrammarCompiler, wanted: StructuredOutput) -> CompiledGrammar:
    from xgrammar import Grammar

    match wanted.kind:
        case StructuredKind.JSON_SCHEMA:
            rules = StringRules()
            schema = normalise_json_schema(
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
                    f"{wanted.param} can't be enforced: {error}.", param=wanted.param
                ) from error
        case StructuredKind.CHOICE:
            choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in _parse(wanted))
            return compiler.compile_grammar(f"root ::= {choices}")
        case StructuredKind.GRAMMAR:
            is_ebnf = "::=" in wanted.source
            return (compiler.compile_grammar if is_ebnf else compiler.compile_lark)(wanted.source)
        case StructuredKind.STRUCTURAL_TAG | StructuredKind.TOOL_CALLS:
            rules = StringRules()
            tag = normalise_structural_tag(
                _parse(wanted),
                wanted.param,
                rules,
                max_whitespace=_MAX_WHITESPACE,
                is_ours=wanted.kind is StructuredKind.TOOL_CALLS,
            )
            grammar = Grammar.from_structural_tag(json.dumps(tag))
            return compiler.compile_grammar(rules.insert(str(grammar)) if rules else grammar)


def _first_line(error: Exception) -> str:
    """The compiler's message, without the position in its own sources."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return re.sub(r"^\[[\d:]+\] \S+\.cc:\d+: ", "", line)[:500]


def _parse(wanted: StructuredOutput) -> Any:
    """Raises InvalidRequest for invalid JSON or invalid Unicode."""
    try:
        value = json.loads(wanted.source)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{wanted.param} is not valid Unicode: it contains a lone surrogate.", param=wanted.param
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{wanted.param} is not valid JSON: {error}", param=wanted.param) from error
    return value
