"""Llama 2, 3, 3.1 to 3.3 and other models saved as LlamaForCausalLM."""

from __future__ import annotations

from engine.models.decoder import CausalLM


class LlamaForCausalLM(CausalLM):
    HAS_HEAD_NORM = False
