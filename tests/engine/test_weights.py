"""Checkpoints: whole, sharded, torn, and the layers that take them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from engine.checkpoint.layout import INDEX_NAME
from engine.errors import CheckpointError
from engine.models import weights
from engine.models.layers import packed_linear
from engine.models.layers.linear import Linear
from engine.models.layers.linear_method import PackedLinear, PlainLinear
from engine.models.registry import generating_architecture
from engine.models.weights import Checkpoint, load_weights
from tests.engine.memory_source import load_layer
from tests.engine.tiny_models import read_model_config

CPU = torch.device("cpu")
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def load(path: Path) -> None:
    config = read_model_config(path)
    model = generating_architecture(config.architecture).load_class()(config, dtype=torch.float32, device=CPU)
    with Checkpoint(path) as checkpoint:
        load_weights(model, checkpoint)


@pytest.fixture
def source(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("qwen3-tied")


def rewritten(source: Path, directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a checkpoint whose tensors `change` has changed."""
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_bytes((source / "config.json").read_bytes())
    return directory


def test_a_missing_tensor_is_named(source: Path, tmp_path: Path) -> None:
    broken = rewritten(source, tmp_path, lambda tensors: tensors.pop(Q_PROJ))
    with pytest.raises(CheckpointError, match=f"it lacks {Q_PROJ}"):
        load(broken)


def test_an_extra_tensor_is_named(source: Path, tmp_path: Path) -> None:
    broken = rewritten(source, tmp_path, lambda tensors: tensors.update({"model.adapter": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"it has model\.adapter, which the model doesn't use"):
        load(broken)


def test_a_wrong_shape_is_named_with_the_right_one(source: Path, tmp_path: Path) -> None:
    broken = rewritten(source, tmp_path, lambda tensors: tensors.update({Q_PROJ: torch.ones(64, 128)}))
    with pytest.raises(CheckpointError, match=rf"{Q_PROJ} \[64, 128\] instead of \[128, 64\]"):
        load(broken)


def test_many_problems_make_a_short_message(source: Path, tmp_path: Path) -> None:
    broken = rewritten(source, tmp_path, lambda tensors: [tensors.pop(name) for name in list(tensors)[:20]])
    with pytest.raises(CheckpointError, match="and 15 more") as caught:
        load(broken)
    assert len(caught.value.message) < 1000


def test_copies_of_tied_weights_and_old_tables_may_be_there(source: Path, tmp_path: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    load(rewritten(source, tmp_path, add))


def test_a_missing_shard_is_named(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = checkpoint("qwen3-untied-sharded")
    shards = sorted(source.glob("*.safetensors"))
    assert len(shards) > 2
    for path in (*shards[1:], source / "config.json", source / INDEX_NAME):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=f"lacks {shards[0].name}, which its index names"):
        load(tmp_path)


@pytest.mark.parametrize("index", ["[]", "{", json.dumps({"weight_map": {}})])
def test_an_index_that_makes_no_sense_is_refused(index: str, tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text(index)
    with pytest.raises(CheckpointError, match=INDEX_NAME.replace(".", r"\.")):
        Checkpoint(tmp_path)


def test_a_torn_file_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors can't be read"):
        Checkpoint(tmp_path)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"has no \.safetensors file"):
        Checkpoint(tmp_path)


def test_tied_embeddings_share_memory_where_nothing_is_packed(source: Path) -> None:
    config = read_model_config(source)
    model = generating_architecture(config.architecture).load_class()(config, dtype=torch.float32, device=CPU)
    with Checkpoint(source) as checkpoint:
        load_weights(model, checkpoint)
    assert model.lm_head.method.weight.data_ptr() == model.model.embed_tokens._weight.data_ptr()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("is_available", [False, True])
def test_linear_packed_or_not(bias: bool, is_available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused from two parts, in bfloat16, with the packed operators and without."""
    if is_available and not packed_linear.is_available(torch.bfloat16):
        pytest.skip("this CPU or this build of PyTorch has no packed bf16 linears")
    if not is_available:
        monkeypatch.setattr(packed_linear, "is_available", lambda dtype: False)
    parts = [torch.randn(size, 64).bfloat16() for size in (96, 32)]
    biases = [torch.randn(size).bfloat16() for size in (96, 32)]
    tensors = {f"{path}.weight": part for path, part in zip("qk", parts, strict=True)}
    if bias:
        tensors |= {f"{path}.bias": part for path, part in zip("qk", biases, strict=True)}
    layer = Linear(64, (96, 32), bias=bias)
    load_layer(layer, tensors, "q", "k", dtype=torch.bfloat16)
    for rows in (1, 2, 8, 33):
        x = torch.randn(rows, 64).bfloat16()
        expected = F.linear(x.float(), torch.cat(parts).float(), torch.cat(biases).float() if bias else None)
        torch.testing.assert_close(layer(x).float(), expected, rtol=2e-2, atol=6e-2)


def test_float32_is_packed_only_where_that_is_asked_for() -> None:
    weight, x = torch.randn(32, 64), torch.randn(40, 64)
    for asked in (False, True):
        layer = Linear(64, (32,), packs_float32=asked)
        load_layer(layer, {"weight": weight})
        is_packed = asked and packed_linear.is_available(torch.float32)
        assert type(layer.method) is (PackedLinear if is_packed else PlainLinear)
        torch.testing.assert_close(layer(x), F.linear(x, weight), rtol=1e-5, atol=1e-4)


def test_packing_is_not_for_other_types() -> None:
    assert not packed_linear.is_available(torch.float16)


def test_a_file_that_is_still_being_read_does_not_hide_the_error(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers reads in threads, which go on after the first error; safetensors then refuses to close."""

    class Busy:
        def __init__(self, *args: object, **options: object) -> None: ...

        def __enter__(self) -> None: ...

        def keys(self) -> list[str]:
            return []

        def __exit__(self, *exc_info: object) -> None:
            raise RuntimeError("Already borrowed")

    monkeypatch.setattr(weights, "safe_open", Busy)
    with pytest.raises(CheckpointError, match="the reason"), Checkpoint(source):
        raise CheckpointError("the reason")
