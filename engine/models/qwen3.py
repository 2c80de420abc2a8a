"""Qwen3, dense: queries and keys are normalised per head before they are rotated."""

from __future__ import annotations

from engine.models.decoder import Attention, CausalLM
from engine.models.decoder_config import DecoderConfig
from engine.models.layers.norm import HeadNorm


class Qwen3ForCausalLM(CausalLM):
    @classmethod
    def make_attention(cls, config: DecoderConfig, layer: int) -> Attention:
        return Attention(
            config, layer, qk_norm=HeadNorm.of(config.attention_specs[layer], config.rms_norm_eps)
        )
