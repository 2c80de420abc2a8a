"""Logits equal plain transformers, and config.json is checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.core.batch import Batch, ScheduledSequence, SequenceInput
from engine.core.types import SamplingParams
from engine.errors import CheckpointError, UnsupportedModel
from engine.execution.graphs import Record
from engine.execution.runner import ModelRunner
from engine.models.attention.paged import PagedKVCache
from engine.models.registry import generating_architecture
from engine.models.weights import Checkpoint, load_weights
from tests.engine.tiny_models import RECIPES, Reference, prompt_of, read_model_config

TOLERANCE = 1e-4
PARAMS = SamplingParams(max_tokens=1, temperature=0.0)


def runner_of(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    num_blocks: int = 64,
    record: Callable[[], Record] | None = None,
) -> ModelRunner:
    config = read_model_config(path)
    model = generating_architecture(config.architecture).load_class()(
        config, dtype=dtype, device=torch.device("cpu")
    )
    with Checkpoint(path) as checkpoint:
        load_weights(model, checkpoint)
    cache = PagedKVCache(
        model.attention_specs, num_blocks=num_blocks, block_size=8, dtype=dtype, device=model.device
    )
    return ModelRunner(model, cache, eos_token_ids=config.eos_token_ids, record=record)


def chunk(tokens: Sequence[int], start: int, stop: int, blocks: Sequence[int]) -> ScheduledSequence:
    return ScheduledSequence(SequenceInput(tokens[start:stop], start, blocks, samples=True), "r", PARAMS)


def prefill_logits(path: Path, tokens: Sequence[int], *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    logits = runner_of(path, dtype=dtype).logits(Batch((chunk(tokens, 0, len(tokens), range(64)),)))
    assert logits is not None
    return logits[0]


@pytest.fixture(params=sorted(RECIPES))
def path(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint(request.param)


def test_prefill_logits(path: Path) -> None:
    reference = Reference(path)
    for length in (1, 2, 8, 9, 150, 300):  # past the 64 positions after which Llama 3's scaling bites
        tokens = prompt_of(length)
        difference = prefill_logits(path, tokens) - reference.logits(tokens)[-1]
        assert difference.abs().max() < TOLERANCE


def test_decode_logits(path: Path) -> None:
    tokens = prompt_of(40)
    expected = Reference(path).logits(tokens)
    runner = runner_of(path)
    blocks = [9, 3, 4, 20, 21]
    runner.logits(Batch((chunk(tokens, 0, 20, blocks),)))
    for position in range(20, 40):
        logits = runner.logits(Batch((chunk(tokens, position, position + 1, blocks),)))
        assert logits is not None
        assert (logits[0] - expected[position]).abs().max() < TOLERANCE


def test_mixed_batch_logits(path: Path) -> None:
    """A decode, a first chunk, and a later chunk of three sequences in one pass."""
    reference = Reference(path)
    sequences = [prompt_of(length) for length in (21, 30, 44)]
    tables = [range(8), [12, 8, 9, 15], [20, 21, 22, 23, 30, 31]]
    runner = runner_of(path)
    runner.logits(
        Batch((chunk(sequences[0], 0, 20, tables[0]), chunk(sequences[2], 0, 13, tables[2]))),
    )
    logits = runner.logits(
        Batch(
            (
                chunk(sequences[0], 20, 21, tables[0]),
                chunk(sequences[1], 0, 30, tables[1]),
                chunk(sequences[2], 13, 44, tables[2]),
            )
        )
    )
    assert logits is not None
    for row, tokens in zip(logits, sequences, strict=True):
        assert (row - reference.logits(tokens)[-1]).abs().max() < TOLERANCE


def write_config(directory: Path, source: Path, **changes: Any) -> Path:
    """A copy of a config.json with some keys changed; None removes a key."""
    raw = json.loads((source / "config.json").read_text()) | changes
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    return directory


def test_rope_may_be_written_flat(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = checkpoint("llama3-tied")
    scaling = json.loads((source / "config.json").read_text())["rope_parameters"]
    theta = scaling.pop("rope_theta")
    flat = write_config(tmp_path, source, rope_parameters=None, rope_scaling=scaling, rope_theta=theta)
    assert read_model_config(flat).ropes == read_model_config(source).ropes


def test_eos_tokens_of_the_generation_config_go_first(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = write_config(tmp_path, checkpoint("qwen3-tied"), eos_token_id=5)
    assert read_model_config(directory).eos_token_ids == (5,)
    (directory / "generation_config.json").write_text('{"eos_token_id": [7, 5]}')
    assert read_model_config(directory).eos_token_ids == (7, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"layer_types": ["full_attention", "full_attention", "mamba"]}, "'mamba'"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "'spiral'"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "'aqlm'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_unsupported_features_are_refused(
    changes: dict[str, Any], message: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = write_config(tmp_path, checkpoint("qwen3-tied"), **changes)
    with pytest.raises(UnsupportedModel, match=message):
        read_model_config(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
        ({"num_hidden_layers": 1 << 31}, "num_hidden_layers is 2147483648; it may be at most 4096"),
        ({"num_experts": 1 << 31}, "num_experts is 2147483648; it may be at most 65536"),
        ({"head_dim": 1 << 31}, "head_dim is 2147483648; it may be at most 65536"),
        ({"num_key_value_heads": 3}, "4 attention heads can't share 3"),
        ({"architectures": None}, "architectures is None"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'gptq'.*they lack 'bits'"),
    ],
)
def test_an_inconsistent_config_is_refused(
    changes: dict[str, Any], message: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = write_config(tmp_path, checkpoint("qwen3-tied"), **changes)
    with pytest.raises(CheckpointError, match=message):
        read_model_config(directory)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_missing_or_invalid_config_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_model_config(tmp_path)


def test_an_unknown_architecture_is_named_with_where_the_known_ones_are_listed() -> None:
    with pytest.raises(UnsupportedModel, match=r"'MambaForCausalLM'.* \(docs/models\.md lists them\)"):
        generating_architecture("MambaForCausalLM")
