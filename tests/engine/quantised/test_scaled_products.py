"""Products of weights as they are stored in 8 bits. PyTorch has them on a CPU, too: here they are forced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

from engine.execution.offload import HostCopy, bytes_of, tensors_of
from engine.models.layers import scaled_products
from engine.models.layers.linear import Linear
from engine.models.layers.scaled_linear import ScaledLinear
from engine.models.layers.weights import StoredLayer
from engine.models.quantised.compressed_tensors import CompressedTensors
from engine.models.quantised.fp8 import FP8
from engine.models.quantised.source import DequantisedSource
from tests.engine.pooling.test_models import INPUTS
from tests.engine.pooling.test_models import core_of as pooling_core
from tests.engine.pooling.test_models import run as pooled
from tests.engine.pooling.tiny_poolers import make_sized_pooler
from tests.engine.quantised.quantisers import Quantiser, fp8_rows, int8
from tests.engine.quantised.stored import Stored
from tests.engine.quantised.test_pooled import quantise
from tests.engine.quantised.test_served import both_of
from tests.engine.test_generation import core_of, greedy, run
from tests.engine.tiny_models import prompt_of

CPU = torch.device("cpu")
FLOAT8, INT8 = torch.float8_e4m3fn, torch.int8
FP8_SETTINGS: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}


def settings_of_int8(**activations: Any) -> dict[str, Any]:
    group = {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "strategy": "channel", "type": "int", "symmetric": True},
        "input_activations": activations or None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


W8A8 = settings_of_int8(num_bits=8, strategy="token", type="int", symmetric=True, dynamic=True)


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if this were a GPU: only there are weights kept."""

    def keeps(device: torch.device, dtype: torch.dtype, shape: tuple[int, int]) -> bool:
        fits = not any(size % 16 for size in shape)
        return fits and dtype in (FLOAT8, INT8) and scaled_products.problem_with(device, dtype) is None

    monkeypatch.setattr(scaled_products, "keeps", keeps)
    yield


def reference(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """In float64: each row of x by its own maximum, rounded as its type does."""
    largest = 448.0 if weight.dtype is FLOAT8 else 127.0
    result = torch.empty(len(x), len(weight), dtype=torch.float64)
    for number, row in enumerate(x.double()):
        scale = row.abs().max() / largest
        rounded = row / scale
        rounded = rounded.float().to(FLOAT8).double() if weight.dtype is FLOAT8 else rounded.round()
        result[number] = (weight.double() * scales.double()) @ rounded * scale
    return result


def stored_layer(dtype: torch.dtype, *, scale_shape: tuple[int, ...] | None = None) -> Stored:
    torch.manual_seed(0)
    quantiser = fp8_rows if dtype is FLOAT8 else int8
    tensors: dict[str, torch.Tensor] = {}
    for name, size in (("q", 32), ("k", 16)):
        parts, _ = quantiser(torch.randn(size, 64))
        if scale_shape is not None:
            parts["weight_scale"] = torch.full(scale_shape, 0.01 * size)
        tensors |= {f"{name}.{part}": value for part, value in parts.items()}
        tensors[f"{name}.bias"] = torch.randn(size)
    return Stored(tensors)


def source_of(stored: Stored, dtype: torch.dtype) -> DequantisedSource:
    return DequantisedSource(stored, FP8(FP8_SETTINGS) if dtype is FLOAT8 else CompressedTensors(W8A8))


def loaded(source: DequantisedSource, dtype: torch.dtype = torch.float32) -> Linear:
    linear = Linear(64, (32, 16), bias=True)
    stored = StoredLayer(source, ("q", "k"), device=CPU, dtype=dtype)
    assert linear.wanted(stored) == {"weight": [(32, 64), (16, 64)], "bias": [(32,), (16,)]}
    linear.load_from(stored)
    return linear


@pytest.mark.parametrize("scale_shape", [None, (), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", [FLOAT8, INT8])
@pytest.mark.usefixtures("on_the_cpu")
def test_a_fused_layer_multiplies_by_what_is_stored(
    dtype: torch.dtype, scale_shape: tuple[int, ...] | None
) -> None:
    """Each part has a scale of its own, for all of it or for each row."""
    stored = stored_layer(dtype, scale_shape=scale_shape)
    linear = loaded(source_of(stored, dtype))
    assert isinstance(linear.method, ScaledLinear)
    weight = torch.cat([stored.tensor(f"{name}.weight") for name in "qk"])
    assert torch.equal(linear.method.weight.view(torch.uint8), weight.view(torch.uint8))
    scales = torch.cat(
        [stored.tensor(f"{name}.weight_scale").expand(n, 1) for name, n in (("q", 32), ("k", 16))]
    )
    bias = torch.cat([stored.tensor(f"{name}.bias") for name in "qk"])
    x = torch.randn(7, 64)
    expected = reference(x, weight, scales) + bias
    assert (linear(x) - expected).norm() <= 5e-3 * expected.norm()
    single = linear(x[:1])
    assert (single - expected[:1]).norm() <= 5e-3 * expected[:1].norm()


@pytest.mark.parametrize("dtype", [FLOAT8, INT8])
def test_small_products_are_right_here(dtype: torch.dtype) -> None:
    assert scaled_products.problem_with(CPU, dtype) is None


def test_a_product_that_raises_or_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*arguments: object, **options: object) -> torch.Tensor:
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setattr(torch, "_scaled_mm", raises)
    assert scaled_products.problem_with(CPU, FLOAT8) == "no kernel image is available"
    monkeypatch.setattr(torch, "_scaled_mm", lambda a, b, **options: torch.zeros(len(a), b.shape[1]))
    assert scaled_products.problem_with(CPU, FLOAT8) == "it is wrong by 100.0%"
    monkeypatch.delattr(torch, "_scaled_mm")
    assert "_scaled_mm" in str(scaled_products.problem_with(CPU, FLOAT8))


def test_a_device_that_cannot_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    device = torch.device("cuda")
    monkeypatch.delenv(scaled_products.SWITCH, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(scaled_products, "problem_with", lambda device, dtype: "no kernel")
    scaled_products._tried.cache_clear()
    assert not scaled_products.keeps(device, FLOAT8, (32, 64))
    assert not scaled_products.keeps(device, FLOAT8, (64, 64))
    assert caplog.messages == [
        "Weights in float8_e4m3fn are dequantised: PyTorch can't multiply by them here (no kernel)."
    ]
    monkeypatch.setattr(scaled_products, "problem_with", lambda device, dtype: None)
    scaled_products._tried.cache_clear()
    assert scaled_products.keeps(device, FLOAT8, (32, 64))
    assert not scaled_products.keeps(device, FLOAT8, (24, 64))  # no whole tiles
    assert not scaled_products.keeps(device, torch.float8_e5m2, (32, 64))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert not scaled_products.keeps(device, FLOAT8, (32, 64))
    assert scaled_products.keeps(device, INT8, (32, 64))
    monkeypatch.setenv(scaled_products.SWITCH, "0")
    assert not scaled_products.keeps(device, INT8, (32, 64))
    scaled_products._tried.cache_clear()


def test_on_a_cpu_all_weights_are_dequantised() -> None:
    assert not isinstance(loaded(source_of(stored_layer(FLOAT8), FLOAT8)).method, ScaledLinear)


@pytest.mark.usefixtures("on_the_cpu")
def test_only_what_is_meant_for_such_products_is_multiplied_like_that() -> None:
    """Not: integers whose activations stay as they are, weights with zero points, scales for blocks."""
    for_weights_only = DequantisedSource(stored_layer(INT8), CompressedTensors(settings_of_int8()))
    assert not isinstance(loaded(for_weights_only).method, ScaledLinear)
    blocks = stored_layer(FLOAT8, scale_shape=(2, 2))
    assert not isinstance(loaded(source_of(blocks, FLOAT8)).method, ScaledLinear)


@pytest.mark.usefixtures("on_the_cpu")
def test_a_share_reads_its_rows_and_columns() -> None:
    class Group:
        rank, size = 1, 2

        def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
            return x

        gather = all_reduce

    stored = stored_layer(FLOAT8)
    whole = Linear(64, (32,))
    for sizes in ((64, 16), (32, 32)):  # half of the outputs, half of the inputs
        linear = Linear(sizes[0], (sizes[1],))
        linear.divide(whole, Group())
        linear.load_from(StoredLayer(source_of(stored, FLOAT8), ("q",), device=CPU, dtype=torch.float32))
        assert isinstance(linear.method, ScaledLinear)
        weight = stored.tensor("q.weight")[32 - sizes[1] :, 64 - sizes[0] :]
        assert torch.equal(linear.method.weight.float(), weight.float())
        assert torch.equal(linear.method.scales, stored.tensor("q.weight_scale")[32 - sizes[1] :].T)


@pytest.mark.usefixtures("on_the_cpu")
def test_its_tensors_move_with_the_model_and_count_as_they_are() -> None:
    linear = loaded(source_of(stored_layer(FLOAT8), FLOAT8), torch.bfloat16)
    x = torch.randn(3, 64).bfloat16()
    expected = linear(x)
    assert expected.dtype is torch.bfloat16
    tensors = [tensor for _, _, tensor in tensors_of(linear.modules())]
    assert bytes_of(tensors) == 48 * 64 + 48 * 4 + 48 * 2  # weight, scales, bias
    copy = HostCopy(linear.modules(), CPU)
    assert isinstance(linear.method, ScaledLinear) and not linear.method.weight.numel()
    copy.restore()
    assert torch.equal(linear(x), expected)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(
    "quantiser", [Quantiser(FP8_SETTINGS, fp8_rows), Quantiser(W8A8, int8)], ids=["fp8", "int8"]
)
def test_a_whole_model(quantiser: Quantiser, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    quantised, plain = both_of(checkpoint("qwen3-tied"), tmp_path, quantiser)
    tokens = {}
    for directory in (quantised, plain):
        core = core_of(directory, max_model_len=64)
        model: Any = core._runner._residency.model  # type: ignore[attr-defined]
        kept = [name for name, module in model.named_modules() if isinstance(module, ScaledLinear)]
        assert len(kept) == (4 if directory == quantised else 0)
        tokens[directory] = run(core, [greedy("r", prompt_of(20), 4)])["r"]
    assert len(tokens[quantised]) == len(tokens[plain]) == 4


@pytest.mark.usefixtures("on_the_cpu")
def test_embeddings_differ_by_the_rounding_of_activations_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With products in float32, so that no later rounding goes another way."""
    product = torch._scaled_mm
    monkeypatch.setattr(
        torch,
        "_scaled_mm",
        lambda *factors, **options: product(*factors, **{**options, "out_dtype": torch.float32}),
    )
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    plain = make_sized_pooler("qwen3-bare", tmp_path, sizes)
    assert quantise(plain, tmp_path / "quantised", Quantiser(FP8_SETTINGS, fp8_rows))
    reference = transformers.AutoModel.from_pretrained(plain, dtype=torch.float32)
    for module in reference.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(rounded)
    found = pooled(pooling_core(tmp_path / "quantised"), INPUTS)
    with torch.inference_mode():
        for ours, token_ids in zip(found, INPUTS, strict=True):
            hidden = reference(input_ids=torch.tensor([token_ids])).last_hidden_state[0, -1]
            assert float(ours @ F.normalize(hidden, dim=0)) > 0.999


def rounded(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    values, scales = scaled_products.quantise_rows(inputs[0], FLOAT8)
    return (values.float() * scales,)
