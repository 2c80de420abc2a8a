"""What can be wrong with GGUF files."""

from __future__ import annotations


class GgufError(Exception):
    """A file that can't be read as GGUF; the message continues a sentence about the file."""
