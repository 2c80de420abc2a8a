"""Tests of `LLM`, the engine in a Python program."""
