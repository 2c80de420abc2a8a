"""Which class reads which method's weights. A test compares this with engine/checkpoint/quantisation.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine.checkpoint.quantisation import Quantisation
from engine.models.quantised.awq import AWQ
from engine.models.quantised.bitsandbytes import BitsAndBytes
from engine.models.quantised.compressed_tensors import CompressedTensors
from engine.models.quantised.fp8 import FP8
from engine.models.quantised.gptq import GPTQ
from engine.models.quantised.mxfp4 import MXFP4
from engine.models.quantised.source import WeightFormat

FORMATS: Mapping[str, Callable[[Mapping[str, Any]], WeightFormat]] = {
    "awq": AWQ,
    "bitsandbytes": BitsAndBytes,
    "compressed-tensors": CompressedTensors,
    "fbgemm_fp8": FP8,
    "fp8": FP8,
    "gptq": GPTQ,
    "modelopt": FP8,
    "mxfp4": MXFP4,
}


def format_of(quantisation: Quantisation) -> WeightFormat:
    return FORMATS[quantisation.method](quantisation.settings)
