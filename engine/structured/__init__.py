"""Output that follows a schema, a regular expression or a grammar: masks over the vocabulary, by xgrammar."""

from engine.structured.grammar_compiler import CompiledOutput, GrammarCompiler
from engine.structured.spec import ReasoningDelimiters, StructuredKind, StructuredOutput

__all__ = ["CompiledOutput", "GrammarCompiler", "ReasoningDelimiters", "StructuredKind", "StructuredOutput"]
