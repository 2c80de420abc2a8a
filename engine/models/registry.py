"""Which architectures there are, by the name that config.json gives."""

from __future__ import annotations

from engine.errors import UnsupportedModel
from engine.models.decoder import CausalLM
from engine.models.llama import LlamaForCausalLM
from engine.models.qwen3 import Qwen3ForCausalLM

ARCHITECTURES: dict[str, type[CausalLM]] = {
    "LlamaForCausalLM": LlamaForCausalLM,
    "Qwen3ForCausalLM": Qwen3ForCausalLM,
}


def model_class(architecture: str) -> type[CausalLM]:
    """Raises UnsupportedModel, which names those that are supported."""
    if architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"Architecture {architecture!r} isn't supported by the embedded engine; "
            f"supported are {', '.join(sorted(ARCHITECTURES))}."
        )
    return ARCHITECTURES[architecture]
