"""Tokens and text: tokenizer, detokenizer, and parsers of what models write."""
