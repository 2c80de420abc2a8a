"""Why the embedded engine can't run a GGUF file, found from its beginning before a start.

The engine reads the rest of the header at its start, and reports what else it can't run. A process boundary
separates the two lists of architectures (engine/checkpoint/gguf_decoders.py and gguf_encoders.py), and a test
compares them.
"""

from __future__ import annotations

from pathlib import Path

from instance_manager.gguf.errors import GgufError
from instance_manager.gguf.headers import header_at
from instance_manager.gguf.models import problem_at

ARCHITECTURES = frozenset(
    {
        *("arcee", "cohere2", "command-r", "ernie4_5", "exaone4", "gemma", "gemma-embedding", "gemma2"),
        *("gemma3", "glm4", "gpt-oss", "granite", "granitemoe", "hunyuan-dense", "llama", "nemotron", "olmo"),
        *("olmo2", "olmoe", "phi3", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "seed_oss", "smollm3"),
        *("starcoder2", "bert", "jina-bert-v2", "modern-bert", "nomic-bert"),
    }
)


def problem_of_gguf(path: Path) -> str | None:
    """None if no problem is known. Blocks for a moment."""
    if (problem := problem_at(path)) is not None:
        return f"{problem}."
    header = header_at(path)
    if isinstance(header, GgufError) or header.architecture in ARCHITECTURES:
        return None
    return (
        f"it has a model of architecture {header.architecture[:100]!r}; of GGUF files, the embedded engine "
        f"runs {', '.join(sorted(ARCHITECTURES))}: llama.cpp may run it."
    )
