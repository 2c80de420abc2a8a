"""Output that follows a schema, an expression or a grammar: masks over the vocabulary, by xgrammar."""

from engine.structured.spec import StructuredKind, StructuredOutput, ThinkingMarks
from engine.structured.structurer import CompiledOutput, Structurer

__all__ = ["CompiledOutput", "StructuredKind", "StructuredOutput", "Structurer", "ThinkingMarks"]
