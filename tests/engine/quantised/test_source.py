"""Quantised checkpoints as plain ones."""

from __future__ import annotations

import pytest
import torch

from engine.models.quantised import source as source_module
from engine.models.quantised.fp8 import FP8
from engine.models.quantised.gptq import GPTQ
from engine.models.quantised.source import DequantisedSource
from tests.engine.quantised.stored import Stored
from tests.engine.quantised.test_gptq import Layer


def test_large_tensors_are_dequantised_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(4, 32, outputs=320)
    dequantised = DequantisedSource(
        Stored(layer.tensors(1)), GPTQ({"bits": 4, "group_size": 32, "sym": False})
    )
    whole = dequantised.tensor("layer.weight")
    monkeypatch.setattr(source_module, "_AT_ONCE", 96 * 130)
    assert torch.equal(dequantised.tensor("layer.weight"), whole)
    part = dequantised.tensor("layer.weight", rows=slice(5, 300), columns=slice(10, 70))
    assert torch.equal(part, whole[5:300, 10:70])
    monkeypatch.setattr(source_module, "_AT_ONCE", 10)  # less than a row
    assert torch.equal(dequantised.tensor("layer.weight", rows=slice(0, 9)), whole[:9])


def test_scales_of_activations_are_no_tensors_of_the_model() -> None:
    names = ("input_scale", "k_scale", "v_scale", "output_scale", "input_zero_point", "input_global_scale")
    stored = Stored({f"layer.{name}": torch.ones(1) for name in names} | {"layer.bias": torch.ones(2)})
    assert DequantisedSource(stored, FP8({})).names == {"layer.bias"}


def test_a_part_is_contiguous() -> None:
    stored = Stored({"a.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "a.weight_scale": torch.ones(1)})
    with pytest.raises(ValueError, match="step of 2"):
        DequantisedSource(stored, FP8({})).tensor("a.weight", rows=slice(0, 4, 2))
