"""Qwen3, dense: queries and keys are normalised per head before they are rotated."""

from __future__ import annotations

from engine.models.decoder import CausalLM


class Qwen3ForCausalLM(CausalLM):
    HAS_HEAD_NORM = True
