"""Plans of this engine's own, in the form of transformers', for families that it has none for.

By model_type. ONCE marks what one device adds.
"""

from __future__ import annotations

from collections.abc import Mapping

ONCE = "once"

_ATTENTION = {
    **{f"layers.*.self_attn.{name}_proj": "colwise" for name in "qkv"},
    "layers.*.self_attn.o_proj": "rowwise",
}
_GATED_MLP = {
    "layers.*.mlp.gate_proj": "colwise",
    "layers.*.mlp.up_proj": "colwise",
    "layers.*.mlp.down_proj": "rowwise",
}

OWN_PLANS: Mapping[str, Mapping[str, str]] = {
    "gpt_oss": {  # matrices of experts are stored [experts, in, out], the columns of gate and up by turns
        **_ATTENTION,
        "layers.*.self_attn.sinks": "colwise",
        "layers.*.mlp.experts": "moe_tp_experts",
        "layers.*.mlp.experts.gate_up_proj": "rowwise",
        "layers.*.mlp.experts.gate_up_proj_bias": "rowwise",
        "layers.*.mlp.experts.down_proj": "colwise",
        "layers.*.mlp.experts.down_proj_bias": ONCE,
    },
    "hunyuan_v1_dense": {**_ATTENTION, **_GATED_MLP},
}
