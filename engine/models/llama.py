"""Llama 2, 3, 3.1 to 3.3 and the families that differ from them in their configuration only."""

from __future__ import annotations

from engine.models.decoder import CausalLM


class LlamaForCausalLM(CausalLM):
    """Also Qwen2 (biases, windows), Mistral, Ministral (windows), SmolLM3 (layers without positions)."""
