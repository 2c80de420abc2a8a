"""The classes of the architectures, by their names in config.json."""

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
    """Raises UnsupportedModel, naming the supported architectures."""
    check_generates(architecture)
    return ARCHITECTURES[architecture]
