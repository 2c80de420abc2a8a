"""FP8 as DeepSeek, Qwen, fbgemm and ModelOpt save it: `weight` in float8, with scales beside it.

`weight_scale_inv` has one scale per block (its name is DeepSeek's; it is multiplied, too), `weight_scale` one
per tensor or row. Layers that weren't converted have a plain weight and no scale.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from engine.models.quantised.scaled import ScaledTensor
from engine.models.quantised.source import Contents
from engine.models.tensor_source import TensorSource

_SCALES = ("_scale_inv", "_scale")


class FP8:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings`: quantization_config, checked by engine/checkpoint/quantisation.py."""
        block = settings.get("weight_block_size")
        if block is None and "FP8_PB_WO" in json.dumps(settings).upper():
            block = (128, 128)  # ModelOpt's, which its settings don't name
        self._block = None if block is None else (int(block[0]), int(block[1]))

    def contents(self, source: TensorSource) -> Contents:
        scales = {
            scale.removesuffix(end): scale
            for end in _SCALES
            for scale in source.names
            if scale.endswith(end) and scale.removesuffix(end) in source.names
        }
        quantised = {
            name: ScaledTensor(source, name, scale, block=self._block, is_of_products=True)
            for name, scale in scales.items()
        }
        for tensor in quantised.values():
            tensor.check()
        return Contents(quantised, frozenset(scales.values()))
