"""Output that follows a schema, a regular expression or a grammar: masks of tokens, by llguidance."""

from engine.structured.grammar_compiler import GrammarCompiler
from engine.structured.matching import CompiledOutput
from engine.structured.spec import ReasoningDelimiters, StructuredKind, StructuredOutput

__all__ = ["CompiledOutput", "GrammarCompiler", "ReasoningDelimiters", "StructuredKind", "StructuredOutput"]
