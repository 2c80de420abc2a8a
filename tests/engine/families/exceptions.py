"""Cells of docs/models.md other than yes, by architecture: words of the refusal."""

from __future__ import annotations

from collections.abc import Mapping

_NO_PLAN = "no: transformers has no plan for it"
_STATE = "no: carries a state from token to token"

EMBEDDED: Mapping[str, str] = {
    "ZayaForCausalLM": "no: carries something from token to token beside attention"
}
DIVIDED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("BambaForCausalLM", "BitNetForCausalLM", "CTRLLMHeadModel"),
            *("DbrxForCausalLM", "FalconH1ForCausalLM", "FalconMambaForCausalLM"),
            *("GPT2LMHeadModel", "GPTBigCodeForCausalLM", "JetMoeForCausalLM"),
            *("Lfm2ForCausalLM", "Lfm3ForCausalLM", "Mamba2ForCausalLM"),
            *("MambaForCausalLM", "ModernBertDecoderForCausalLM", "MoshiForCausalLM"),
            *("OPTForCausalLM", "PersimmonForCausalLM", "Zamba2ForCausalLM"),
            *("ZambaForCausalLM", "ZayaForCausalLM"),
        ),
        _NO_PLAN,
    ),
    **dict.fromkeys(
        (
            *("BailingHybridForCausalLM", "JambaForCausalLM", "KimiLinearForCausalLM"),
            "Lfm2MoeForCausalLM",
            *("NemotronHForCausalLM", "OlmoHybridForCausalLM", "Qwen3NextForCausalLM"),
            *("Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM"),
        ),
        _STATE,
    ),
    "GraniteMoeHybridForCausalLM": f"yes; with Mamba layers {_STATE}",
}
