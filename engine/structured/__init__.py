"""Output that follows a schema, an expression or a grammar: masks over the vocabulary, by xgrammar."""

from engine.structured.grammar_compiler import CompiledOutput, Structurer
from engine.structured.spec import StructuredKind, StructuredOutput, ThinkingMarks

__all__ = ["CompiledOutput", "StructuredKind", "StructuredOutput", "Structurer", "ThinkingMarks"]
