"""Output that follows a schema, an expression or a grammar: masks over the vocabulary, by xgrammar."""

from engine.structured.spec import StructuredKind, StructuredOutput, ReasoningDelimiters
from engine.structured.grammar_compiler import CompiledOutput, GrammarCompiler

__all__ = ["CompiledOutput", "StructuredKind", "StructuredOutput", "GrammarCompiler", "ReasoningDelimiters"]
