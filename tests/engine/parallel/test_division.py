"""Shares of layers and of models: what each rank reads, and that all of them compute the whole's result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from engine.core.batch import Batch
from engine.errors import ConfigError, UnsupportedModel
from engine.execution.parallel.division import build_share
from engine.execution.runner import ModelRunner
from engine.models.attention.paged import PagedKVCache
from engine.models.decoder import CausalLM
from engine.models.decoder_config import DecoderConfig
from engine.models.divisible import check_divisible
from engine.models.layers.division import DeviceGroup, Share, share_of
from engine.models.layers.embedding import Embedding
from engine.models.layers.layer_norm import LayerNorm
from engine.models.layers.linear import Linear
from engine.models.layers.linear_method import LinearMethod, MatrixTensor
from engine.models.layers.weights import StoredLayer
from engine.models.quantised.checkpoint import open_checkpoint
from engine.models.registry import generating_architecture
from engine.models.weights import load_weights
from tests.engine.memory_source import CPU, MemorySource
from tests.engine.parallel.thread_group import ThreadGroup, on_ranks
from tests.engine.quantised.quantisers import QUANTISERS
from tests.engine.quantised.test_served import both
from tests.engine.test_models import TOLERANCE, chunk, runner_of
from tests.engine.tiny_models import Reference, prompt_of, read_model_config

BATCH = Batch((chunk(prompt_of(20), 0, 20, range(8)),))


def load(layer: Linear | Embedding, source: MemorySource, *paths: str, dtype: torch.dtype) -> None:
    layer.load_from(StoredLayer(source, paths, device=CPU, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("together", [False, True])
def test_divided_outputs_are_columns_of_the_whole_result(together: bool, dtype: torch.dtype) -> None:
    """Two key-value heads of 8 features for four ranks: each is held twice."""
    weights = {name: torch.randn(size, 24).to(dtype) for name, size in (("q", 64), ("k", 16), ("v", 16))}
    biases = {name: torch.randn(len(weight)).to(dtype) for name, weight in weights.items()}
    tensors = {f"{name}.weight": weight for name, weight in weights.items()}
    tensors |= {f"{name}.bias": bias for name, bias in biases.items()}
    paths = tuple(weights)
    if together:
        tensors = {
            "qkv.weight": torch.cat(list(weights.values())),
            "qkv.bias": torch.cat(list(biases.values())),
        }
        paths = ("qkv",)
    whole = Linear(24, (64, 16, 16), bias=True)
    x = torch.randn(5, 24).to(dtype)

    def run(group: ThreadGroup) -> torch.Tensor:
        layer, source = Linear(24, (16, 8, 8), bias=True), MemorySource(tensors)
        layer.divide(whole, group)
        load(layer, source, *paths, dtype=dtype)
        weight_rows = sum(rows.stop - rows.start for name, rows, _ in source.read if "weight" in name)
        assert weight_rows == 32, "no more is read than the share"
        result: torch.Tensor = layer(x)
        return result

    def project(name: str) -> torch.Tensor:
        return F.linear(x.float(), weights[name].float(), biases[name].float())

    query, key, value = map(project, "qkv")
    tolerance = 1e-5 if dtype is torch.float32 else 6e-2
    for rank, result in enumerate(on_ranks(4, run)):
        kv = slice(rank // 2 * 8, rank // 2 * 8 + 8)
        expected = torch.cat((query[:, rank * 16 : rank * 16 + 16], key[:, kv], value[:, kv]), dim=-1)
        torch.testing.assert_close(result.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_divided_inputs_add_up_with_the_bias_once(dtype: torch.dtype) -> None:
    weight, bias, x = (torch.randn(shape).to(dtype) for shape in ((12, 32), (12,), (3, 32)))

    def run(group: ThreadGroup) -> torch.Tensor:
        layer, source = Linear(16, (12,), bias=True), MemorySource({"o.weight": weight, "o.bias": bias})
        layer.divide(Linear(32, (12,), bias=True), group)
        assert layer.wanted(StoredLayer(source, ["o"], device=CPU, dtype=dtype)) == {
            "weight": [(12, 32)],
            "bias": [(12,)],
        }
        load(layer, source, "o", dtype=dtype)
        assert ("o.bias" in {name for name, _, _ in source.read}) == (group.rank == 0)
        result: torch.Tensor = layer(x[:, group.rank * 16 : group.rank * 16 + 16])
        return result

    expected = F.linear(x.float(), weight.float(), bias.float())
    tolerance = 1e-5 if dtype is torch.float32 else 6e-2
    for result in on_ranks(2, run):
        torch.testing.assert_close(result.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("vocab_size", [16, 15, 13])
def test_a_divided_vocabulary_gives_all_embeddings_everywhere_and_all_logits_on_rank_0(
    vocab_size: int,
) -> None:
    weight, x = torch.randn(vocab_size, 6), torch.randn(3, 6)
    token_ids = torch.arange(vocab_size)

    def run(group: ThreadGroup) -> tuple[torch.Tensor, torch.Tensor]:
        embedding, head = Embedding(vocab_size, 6), Linear(6, (vocab_size,))
        embedding.divide(group)
        head.divide_vocabulary(group)
        for layer in (embedding, head):
            load(layer, MemorySource({"embed.weight": weight}), "embed", dtype=torch.float32)
        return embedding(token_ids), head(x)

    results = on_ranks(4, run)
    assert all(torch.equal(embedded, weight) for embedded, _ in results)
    torch.testing.assert_close(results[0][1], F.linear(x, weight))


def test_a_share_of_blocks_is_whole_blocks_or_refused() -> None:
    assert Share(128, 256, 512).of(4) == slice(1, 2)
    assert Share(0, 512, 512).of(3) == slice(None)
    with pytest.raises(UnsupportedModel, match="features 64 to 128 of 512 aren't a whole number of the 4"):
        Share(64, 128, 512).of(4)


def test_the_axes_of_a_methods_tensors_decide_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantised form whose matrix has its axes exchanged, with a scale for each 4 inputs."""

    class Exchanged(LinearMethod):
        def tensors(self, in_features: int, out_features: int, *, bias: bool) -> Mapping[str, MatrixTensor]:
            return {
                "qweight": MatrixTensor((in_features, out_features), 1, 0, torch.int32),
                "scales": MatrixTensor((in_features // 4, out_features), 1, 0, torch.float16),
            }

        def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
            self.matrix = tensors["qweight"] * tensors["scales"].repeat_interleave(4, dim=0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.matrix.float()

    monkeypatch.setattr(
        "engine.models.layers.linear.choose_method", lambda stored, packs_float32: Exchanged()
    )
    tensors = {
        "d.qweight": torch.randint(-8, 8, (16, 6), dtype=torch.int32),
        "d.scales": torch.rand(4, 6).half(),
    }
    x = torch.randn(3, 16)

    def run(group: ThreadGroup) -> torch.Tensor:
        layer = Linear(8, (6,))
        layer.divide(Linear(16, (6,)), group)
        load(layer, MemorySource(tensors), "d", dtype=torch.float32)
        result: torch.Tensor = layer(x[:, group.rank * 8 : group.rank * 8 + 8])
        return result

    expected = x @ (tensors["d.qweight"] * tensors["d.scales"].repeat_interleave(4, dim=0)).float()
    torch.testing.assert_close(on_ranks(2, run)[0], expected)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("qwen3-tied", 2),
        ("qwen3-tied", 4),  # two key-value heads: each is held by two ranks
        ("qwen3-untied-sharded", 2),
        ("llama3-tied", 4),
        ("llama-untied-bias", 2),
    ],
)
def test_the_ranks_of_a_model_compute_its_logits(
    name: str, size: int, checkpoint: Callable[[str], Path]
) -> None:
    """A prompt in chunks over scattered blocks, then decodes."""
    path, tokens = checkpoint(name), prompt_of(40)

    def run(group: ThreadGroup) -> list[torch.Tensor]:
        runner = share_of_runner(path, group)
        steps = ((0, 15), (15, 37), (37, 38), (38, 39))
        logits = [runner.logits(Batch((chunk(tokens, *step, [9, 3, 4, 20, 21]),))) for step in steps]
        return [rows[0] for rows in logits if rows is not None]

    expected = Reference(path).logits(tokens)
    for position, logits in zip((14, 36, 37, 38), on_ranks(size, run)[0], strict=True):
        assert (logits - expected[position]).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", QUANTISERS)
def test_the_ranks_of_a_quantised_model_read_their_shares(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    quantised, plain = both(checkpoint("qwen3-tied"), tmp_path, name)
    whole = runner_of(plain).logits(BATCH)

    def run(group: ThreadGroup) -> torch.Tensor | None:
        return share_of_runner(quantised, group).logits(BATCH)

    logits = on_ranks(2, run)[0]
    assert logits is not None and whole is not None
    assert (logits - whole).abs().max() < TOLERANCE


def share_of_runner(path: Path, group: DeviceGroup, *, max_model_len: int | None = None) -> ModelRunner:
    config = replace(read_model_config(path), max_model_len=max_model_len)
    model = build_share(make_model, config, group)
    with open_checkpoint(path) as source:
        load_weights(model, source)
    cache = PagedKVCache(model.attention_specs, num_blocks=32, block_size=8, dtype=torch.float32, device=CPU)
    return ModelRunner(model, cache, eos_token_ids=())


def make_model(config: DecoderConfig) -> CausalLM:
    model: CausalLM = generating_architecture(config.architecture).load_class()(
        config, dtype=torch.float32, device=CPU
    )
    return model


def test_a_rank_holds_its_share_of_the_weights_and_of_the_cache(checkpoint: Callable[[str], Path]) -> None:
    path = checkpoint("llama-untied-bias")

    def memory(group: ThreadGroup) -> tuple[int, int]:
        usage = share_of_runner(path, group).memory
        return usage.weights, usage.kv_cache

    ((weights, cache),) = on_ranks(1, memory)
    for rank_weights, rank_cache in on_ranks(2, memory):
        assert rank_cache == cache / 2
        assert weights / 2 <= rank_weights < weights * 0.51, "norms are held by both"


def test_a_size_that_does_not_divide_the_model_is_refused_with_those_that_do(
    checkpoint: Callable[[str], Path],
) -> None:
    config = read_model_config(checkpoint("qwen3-tied"))  # 4 heads, 2 key-value heads, 96
    for size in (1, 2, 4):
        check_divisible(config, size)
    with pytest.raises(
        ConfigError, match=r"--tensor-parallel-size 3 .* 4 attention heads.*Possible: 1, 2, 4"
    ):
        check_divisible(config, 3)
    specs = [replace(spec, num_heads=12, num_kv_heads=6) for spec in config.attention_specs]
    with pytest.raises(ConfigError, match="Possible: 1, 2, 3, 6"):
        check_divisible(replace(config, attention_specs=tuple(specs)), 4)


def test_a_layer_that_would_have_to_be_divided_and_can_not_is_refused(
    checkpoint: Callable[[str], Path],
) -> None:
    """A kind of norm over all heads that no family has."""

    def with_norm(config: DecoderConfig) -> CausalLM:
        model = make_model(config)
        attention = model.get_submodule("model.layers.0.self_attn")
        attention.add_module("q_norm", LayerNorm(config.num_attention_heads * config.head_dim, 1e-6))
        return model

    config = read_model_config(checkpoint("qwen3-tied"))
    with pytest.raises(UnsupportedModel, match=r"layer model\.layers\.0\.self_attn\.q_norm would have to be"):
        on_ranks(2, lambda group: build_share(with_norm, config, group))


def test_shares_of_too_few_features() -> None:
    groups = on_ranks(4, lambda group: group)
    assert [share_of(8, 16, group).start for group in groups] == [0, 0, 8, 8]
    with pytest.raises(ValueError, match="can't be divided"):
        share_of(5, 15, groups[0])
