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
            *(
                "BitNetForCausalLM",
                "CTRLLMHeadModel",
                "DbrxForCausalLM",
                "GPT2LMHeadModel",
                "JetMoeForCausalLM",
            ),
            *(
                "GPTBigCodeForCausalLM",
                "ModernBertDecoderForCausalLM",
                "OPTForCausalLM",
                "PersimmonForCausalLM",
            ),
        ),
        _NO_PLAN,
    ),
    **dict.fromkeys(
        (
            *(
                "BailingHybridForCausalLM",
                "BambaForCausalLM",
                "FalconH1ForCausalLM",
                "FalconMambaForCausalLM",
            ),
            *("JambaForCausalLM", "Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "Lfm3ForCausalLM"),
            *("Mamba2ForCausalLM", "MambaForCausalLM", "NemotronHForCausalLM", "OlmoHybridForCausalLM"),
            *("Qwen3NextForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM", "Zamba2ForCausalLM"),
            *("ZambaForCausalLM", "ZayaForCausalLM"),
        ),
        _STATE,
    ),
    "GraniteMoeHybridForCausalLM": f"yes; {_STATE}",
}
