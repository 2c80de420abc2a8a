"""Which architectures there are, by the name that config.json gives."""

from __future__ import annotations

from engine.models.architectures import check_generates
from engine.models.decoder import CausalLM
from engine.models.llama import LlamaForCausalLM
from engine.models.qwen3 import Qwen3ForCausalLM

ARCHITECTURES: dict[str, type[CausalLM]] = {
    "LlamaForCausalLM": LlamaForCausalLM,
    "Qwen3ForCausalLM": Qwen3ForCausalLM,
}


def model_class(architecture: str) -> type[CausalLM]:
    """Raises UnsupportedModel, which names those that are supported."""
    check_generates(architecture)
    return ARCHITECTURES[architecture]
