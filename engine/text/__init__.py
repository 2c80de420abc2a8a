"""Tokens and text: tokenizer, detokenizer, and parsers of the models' output."""
