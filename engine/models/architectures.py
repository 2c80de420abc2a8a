"""The architectures that can generate text, by their names in config.json. Knows nothing of torch."""

from __future__ import annotations

from engine.errors import UnsupportedModel

GENERATING = frozenset({"LlamaForCausalLM", "Qwen3ForCausalLM"})  # registry.py has their classes


def check_generates(architecture: str) -> None:
    """Raises UnsupportedModel, naming the supported architectures."""
    if architecture not in GENERATING:
        raise UnsupportedModel(
            f"Architecture {architecture!r} isn't supported by the embedded engine, which runs "
            f"{', '.join(sorted(GENERATING))}."
        )
