"""How much memory a llama-server is expected to take, from the header of its file and its flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from instance_manager.backends import BACKENDS
from instance_manager.backends.llama_cpp.memory import context_tokens, kv_cache_bytes, offloaded_share
from instance_manager.gguf.header import GgufHeader
from instance_manager.memory.checkpoint_size import Estimate, read_load
from instance_manager.memory.kv_cache_size import Machine
from tests.instance_manager.test_llama import write_header

GIB = 1 << 30
ON_CPU = Machine(host_available_bytes=64 * GIB)
ON_GPU = Machine(host_available_bytes=64 * GIB, num_gpus=1, gpu_total_bytes=24 * GIB)
# As in the files of Qwen3-8B.
QWEN3 = {
    "general.architecture": "qwen3",
    "qwen3.block_count": 36,
    "qwen3.context_length": 40960,
    "qwen3.embedding_length": 4096,
    "qwen3.feed_forward_length": 12288,
    "qwen3.attention.head_count": 32,
    "qwen3.attention.head_count_kv": 8,
    "qwen3.attention.key_length": 128,
    "qwen3.attention.value_length": 128,
}
PER_TOKEN = 36 * 8 * (128 + 128) * 2


def estimate(path: Path, params: dict[str, Any], machine: Machine) -> Estimate:
    load = read_load(str(path), params, {})
    assert load is not None
    return BACKENDS["llama"].estimate(load, machine)


def cache_bytes(params: dict[str, Any], keys: dict[str, Any], tokens: int) -> int:
    return kv_cache_bytes(params, GgufHeader(1, keys), tokens)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_header(tmp_path / "m-Q8_0.gguf", QWEN3, size=1 << 20)


@pytest.mark.parametrize(
    ("params", "tokens"),
    [
        ({}, 40960),
        ({"ctx_size": 8192}, 8192),
        ({"c": 8192}, 8192),
        ({"max_model_len": 4096}, 4096),
        ({"max_model_len": "4K", "max_num_seqs": 4}, 16384),
        ({"ctx_size": 0}, 40960),
    ],
)
def test_the_cache_has_room_for_what_its_flags_say(model: Path, params: dict[str, Any], tokens: int) -> None:
    assert context_tokens(params, GgufHeader(1, QWEN3)) == tokens
    assert estimate(model, params, ON_CPU).kv_cache_bytes == tokens * PER_TOKEN


@pytest.mark.parametrize(
    ("params", "part"),
    [
        ({"cache_type_k": "q8_0", "cache_type_v": "q8_0"}, 34 / 64),
        ({"kv_cache_dtype": "q8_0"}, 34 / 64),
        ({"ctk": "f32"}, 1.5),
        ({"kv_cache_dtype": "auto"}, 1),
    ],
)
def test_the_cache_s_type_counts(params: dict[str, Any], part: float) -> None:
    assert cache_bytes(params, QWEN3, 1000) == int(1000 * PER_TOKEN * part)


def test_layers_with_a_window_and_layers_without_attention_take_less() -> None:
    gemma = {key.replace("qwen3.", "gemma3."): value for key, value in QWEN3.items()}
    gemma |= {"general.architecture": "gemma3", "gemma3.attention.sliding_window": 1024}
    per_layer = 8 * 256 * 2
    windows = min(40960, (1024 + 512) * 4)
    assert cache_bytes({}, gemma, 40960) == 6 * per_layer * 40960 + 30 * per_layer * windows
    assert cache_bytes({"swa_full": True}, gemma, 40960) == 40960 * PER_TOKEN
    hybrid = {**QWEN3, "qwen3.attention.head_count_kv": [0, 0, 0, 8] * 9}
    assert cache_bytes({}, hybrid, 100) == 100 * PER_TOKEN // 4
    assert cache_bytes({}, {**QWEN3, "qwen3.full_attention_interval": 4}, 100) == 100 * PER_TOKEN // 4
    assert cache_bytes({}, {**QWEN3, "qwen3.attention.causal": False}, 100) == 0
    latent = {**QWEN3, "qwen3.attention.kv_lora_rank": 512, "qwen3.rope.dimension_count": 64}
    assert cache_bytes({}, latent, 100) == 100 * 36 * (512 + 64) * 2
    assert cache_bytes({}, {}, 100) == 0


def test_what_lies_beside_the_model_counts(tmp_path: Path) -> None:
    for part in (1, 2):
        write_header(tmp_path / f"m-{part:05}-of-00002.gguf", QWEN3, size=4 << 20)
    first = tmp_path / "m-00001-of-00002.gguf"
    assert estimate(first, {}, ON_CPU).weights_bytes == 8 << 20
    write_header(tmp_path / "mmproj-F16.gguf", {"general.architecture": "clip"}, size=1 << 20)
    draft = write_header(tmp_path / "draft/d.gguf", QWEN3, size=2 << 20)
    assert estimate(first, {"model_draft": str(draft)}, ON_CPU).weights_bytes == 11 << 20
    assert estimate(first, {"mmproj": False}, ON_CPU).weights_bytes == 8 << 20
    assert estimate(tmp_path, {}, ON_CPU).weights_bytes == 9 << 20  # a folder with one model


def test_on_a_gpu_it_takes_what_fits_and_leaves_the_rest_to_the_cpu(tmp_path: Path) -> None:
    small = write_header(tmp_path / "a/m.gguf", QWEN3, size=1 << 20)
    whole = estimate(small, {}, ON_GPU)
    assert (whole.num_gpus, whole.kv_cache_bytes) == (1, 40960 * PER_TOKEN)
    assert whole.footprint().gpu_bytes_each < 24 * GIB

    large = {**QWEN3, "qwen3.context_length": 1 << 20}  # its cache alone would take 144 GiB
    fitted = estimate(write_header(tmp_path / "b/m.gguf", large, size=1 << 20), {}, ON_GPU)
    assert 22 * GIB < fitted.footprint().gpu_bytes_each <= 24 * GIB
    asked = estimate(tmp_path / "b/m.gguf", {"ctx_size": 1 << 20}, ON_GPU)
    assert asked.kv_cache_bytes == (1 << 20) * PER_TOKEN
    assert estimate(small, {"n_gpu_layers": 0}, ON_GPU).num_gpus == 0
    assert estimate(small, {"device": "none"}, ON_GPU).num_gpus == 0


def test_layers_are_counted_with_the_head() -> None:
    assert offloaded_share({"ngl": 37}, GgufHeader(1, QWEN3)) == 1
    assert offloaded_share({"gpu_layers": 99}, GgufHeader(1, QWEN3)) == 1
    assert offloaded_share({"n_gpu_layers": 18}, GgufHeader(1, QWEN3)) == 18 / 37
    assert offloaded_share({"n_gpu_layers": "all"}, GgufHeader(1, QWEN3)) == 1
    assert offloaded_share({}, GgufHeader(1, {})) == 1
