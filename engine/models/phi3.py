"""Phi-3 and Phi-4: query, key and value projections, and gate and up, are stored as one matrix each."""

from __future__ import annotations

from typing import ClassVar

from engine.models.decoder import CausalLM


class Phi3ForCausalLM(CausalLM):
    FUSED: ClassVar[dict[str, tuple[str, ...]]] = {}
