"""RoPE scaling as GGUF files tell it: by metadata, or by a tensor with a factor for each frequency."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

from engine.checkpoint.gguf_fields import Config, Fields
from engine.checkpoint.gguf_file import GGUFFile
from engine.errors import CheckpointError, UnsupportedModel

_FREQUENCIES = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
ROPE_TENSORS = frozenset({_FREQUENCIES, _LONG, _SHORT})  # become configuration


def rope_scaling_of(fields: Fields) -> Config | None:
    tensors = fields.file.tensors
    if _LONG in tensors:
        return {
            "rope_type": "longrope",
            "long_factor": _floats(fields.file, _LONG),
            "short_factor": _floats(fields.file, _SHORT),
            "original_max_position_embeddings": fields.integer("rope.scaling.original_context_length"),
        }
    if _FREQUENCIES in tensors:
        return _llama3(fields, _floats(fields.file, _FREQUENCIES))
    kind = fields.optional("rope.scaling.type")
    if kind in (None, "none"):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": fields.number("rope.scaling.factor")}
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": fields.number("rope.scaling.factor"),
            "original_max_position_embeddings": fields.integer("rope.scaling.original_context_length"),
        }
    raise UnsupportedModel(f"{fields.file.path}: rope.scaling.type {kind!r} isn't supported.")


def _llama3(fields: Fields, factors: Sequence[float]) -> Config | None:
    """Llama 3's scaling from what it makes of every frequency: all of its models differ in `factor` alone."""
    if all(factor == 1.0 for factor in factors):
        return None
    scaling: Config = {
        "rope_type": "llama3",
        "factor": max(factors),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    theta, pairs = fields.number("rope.freq_base", 10_000.0), len(factors)
    for at, factor in enumerate(factors):
        turns = 8192 / (2 * math.pi * theta ** (at / pairs))  # in the original context
        smooth = min(1.0, max(0.0, (turns - 1.0) / 3.0))
        if not math.isclose(1 / ((1 - smooth) / scaling["factor"] + smooth), factor, rel_tol=1e-3):
            raise UnsupportedModel(f"{fields.file.path}: {_FREQUENCIES} isn't of Llama 3's kind.")
    return scaling


def _floats(file: GGUFFile, name: str) -> list[float]:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.type_name != "F32":
        raise CheckpointError(f"{file.path} has no tensor {name} of type F32.")
    values = array("f")
    with file.path.open("rb") as stream:
        stream.seek(tensor.start)
        values.frombytes(stream.read(tensor.num_bytes))
    return values.tolist()
