"""Estimates before a first start: from real checkpoint files, small ones made here and the demo model's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from instance_manager.backends import BACKENDS
from instance_manager.backends.activation_size import activations
from instance_manager.memory.checkpoint_size import Estimate, ModelLoad, locate, read_load, weights_size
from instance_manager.memory.dequantised_size import dequantised
from instance_manager.memory.kv_cache_size import Machine
from instance_manager.memory.measurements import Footprint
from tests.gguf_files import put_gguf, put_split, tiny

GIB = 1 << 30
MIB = 1 << 20
DEMO = Path(__file__).resolve().parents[2] / "models" / "berth-demo"
HOST = Machine(host_available_bytes=16 * GIB)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 256,
    "max_position_embeddings": 1000,
    "torch_dtype": "float16",
}
TOKEN_BYTES = 2 * 4 * 2 * 32 * 2  # keys and values, layers, heads, head size, bytes


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """1000 16-bit floats and 100 bytes of integers."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    tensors: dict[str, NDArray[Any]] = {"a": np.zeros((10, 100), np.float16), "b": np.zeros(100, np.int8)}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def estimated(model: Path, machine: Machine = HOST, engine: str = "engine", **params: Any) -> Estimate:
    found = estimate(str(model), engine, params, {}, machine)
    assert found is not None
    return found


def estimate(
    model: str, engine: str, params: Mapping[str, Any], environ: Mapping[str, str], machine: Machine
) -> Estimate | None:
    load = read_load(model, params, environ)
    return None if load is None else BACKENDS[engine].estimate(load, machine)


def test_the_demo_model() -> None:
    found = estimated(DEMO)
    size = (DEMO / "model.safetensors").stat().st_size
    head = 3072 * 192 * 2  # tied to the embedding, but packed
    assert size * 0.99 < found.weights_bytes - head < size
    assert found.kv_cache_bytes == 2 * 7 * 2 * 32 * 2 * 2048 * 64  # every sequence at its longest


@pytest.mark.parametrize(
    ("dtype", "num_bytes"), [("auto", 2100), ("float16", 2100), ("bfloat16", 2100), ("float32", 4100)]
)
def test_floats_are_converted_to_the_compute_type(checkpoint: Path, dtype: str, num_bytes: int) -> None:
    assert estimated(checkpoint, dtype=dtype).weights_bytes == num_bytes


def test_shards_count_as_the_index_names_them(checkpoint: Path) -> None:
    for number in (1, 2):
        save_file({f"t{number}": np.zeros(50, np.float32)}, checkpoint / f"model-{number}.safetensors")
    save_file({"other": np.zeros(999, np.float32)}, checkpoint / "consolidated.safetensors")
    index = {"weight_map": {"t1": "model-1.safetensors", "t2": "model-2.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_size(checkpoint, None) == 400
    (checkpoint / "model-2.safetensors").unlink()
    assert weights_size(checkpoint, None) is None


def test_other_files_count_as_they_are(tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF" * 100)
    assert weights_size(gguf, None) == 400
    assert weights_size(tmp_path, None) == 400
    found = estimated(gguf, engine="command")
    assert (found.weights_bytes, found.kv_cache_bytes) == (400, 0)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x05\0\0\0\0\0\0\0nojso", b"\x02\0\0\0\0\0\0\0[]"])
def test_an_invalid_checkpoint_has_no_estimate(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert estimate(str(tmp_path), "engine", {}, {}, HOST) is None


def test_a_missing_model_has_no_estimate(tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path)}
    for model in ("org/model", "../model", "/no/such/place", ""):
        assert estimate(model, "engine", {}, environ, HOST) is None
    empty = tmp_path / "empty"
    empty.mkdir()
    assert estimate(str(empty), "engine", {}, environ, HOST) is None


def test_a_hub_id_is_found_in_the_hub_cache(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--model"
    for commit in ("c1", "c2"):
        (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c2\n")
    by_home = {"HF_HOME": str(tmp_path)}
    assert locate("org/model", by_home) == repository / "snapshots" / "c2"
    assert locate("org/model", by_home, "c1") == repository / "snapshots" / "c1"
    assert locate("org/model", by_home, "c3") is None
    assert locate("org/model", {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HOME": "/none"}) is not None
    assert locate("org/model", {"XDG_CACHE_HOME": str(tmp_path)}) is None


@pytest.mark.parametrize(
    ("params", "num_bytes"),
    [
        ({"kv_cache_memory_bytes": "2G"}, 2 * GIB),
        ({"kv_cache_memory_bytes": 12345}, 12345),
        ({"num_gpu_blocks_override": 10}, 10 * 16 * TOKEN_BYTES),
        ({"num_gpu_blocks_override": 10, "block_size": 32, "dtype": "float32"}, 10 * 64 * TOKEN_BYTES),
        ({}, 63 * 16 * TOKEN_BYTES * 64),  # 1000 tokens are 63 blocks, 64 sequences are the default
        ({"max_num_seqs": 3, "max_model_len": "2K"}, 128 * 16 * TOKEN_BYTES * 3),
        ({"max_num_seqs": "100k"}, 4 * GIB),  # a quarter of the available memory
        ({"max_model_len": "10M"}, 10 * GIB),  # one sequence of the requested length
        ({"max_model_len": "20M"}, int(16 * GIB * 0.8)),  # as long as possible
        ({"convert": "embed"}, 0),
        ({"runner": "pooling"}, 0),
    ],
)
def test_the_embedded_engines_cache_on_a_cpu(
    checkpoint: Path, params: Mapping[str, Any], num_bytes: int
) -> None:
    assert estimated(checkpoint, **params).kv_cache_bytes == num_bytes


def test_an_encoder_has_no_cache_and_an_incomplete_configuration_the_default(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    assert estimated(checkpoint).kv_cache_bytes == 0
    (checkpoint / "config.json").write_text(json.dumps({"architectures": ["NewForCausalLM"]}))
    assert estimated(checkpoint).kv_cache_bytes == 4 * GIB
    assert estimated(checkpoint, num_gpu_blocks_override=10).kv_cache_bytes == 4 * GIB


def test_the_decoders_part_of_a_vision_language_model(checkpoint: Path) -> None:
    config = {"architectures": ["SeeingForConditionalGeneration"], "text_config": CONFIG}
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert estimated(checkpoint, num_gpu_blocks_override=1).kv_cache_bytes == 16 * TOKEN_BYTES


def test_vllms_cache_on_a_cpu_is_in_its_environment(checkpoint: Path) -> None:
    found = estimate(str(checkpoint), "vllm", {}, {"VLLM_CPU_KVCACHE_SPACE": "0.5"}, HOST)
    assert found is not None
    assert found.kv_cache_bytes == GIB // 2
    assert estimated(checkpoint, engine="vllm").kv_cache_bytes == 4 * GIB


@pytest.mark.parametrize("engine", ["vllm", "engine"])
@pytest.mark.parametrize(("share", "expected"), [(None, 0.9), (0.5, 0.5), ("0.25", 0.25)])
def test_on_gpus_an_engine_takes_the_fraction_it_is_given(
    checkpoint: Path, engine: str, share: object, expected: float
) -> None:
    machine = Machine(host_available_bytes=16 * GIB, num_gpus=2, gpu_total_bytes=80 * GIB)
    params = {} if share is None else {"gpu_memory_utilization": share}
    each = estimated(checkpoint, machine, engine, **params).footprint().gpu_bytes_each
    assert abs(each - 80 * GIB * expected) <= 4


def test_on_gpus_a_cache_of_a_given_size_is_on_each(checkpoint: Path) -> None:
    machine = Machine(host_available_bytes=16 * GIB, num_gpus=2, gpu_total_bytes=80 * GIB)
    found = estimated(checkpoint, machine, kv_cache_memory_bytes="4G")
    assert found.footprint().gpu_bytes_each == 4 * GIB + found.gpu_overhead_bytes + found.weights_bytes // 2


def test_memory_held_asleep() -> None:
    on_gpus = Estimate(
        weights_bytes=10, kv_cache_bytes=30, host_overhead_bytes=5, gpu_overhead_bytes=2, num_gpus=2
    )
    assert [on_gpus.footprint(level) for level in (0, 1, 2)] == [
        Footprint(5, 22),
        Footprint(15, 2),
        Footprint(5, 2),
    ]
    on_host = Estimate(
        weights_bytes=10, kv_cache_bytes=30, host_overhead_bytes=5, gpu_overhead_bytes=0, num_gpus=0
    )
    assert [on_host.footprint(level).host_bytes for level in (0, 1, 2)] == [45, 15, 5]
    steps = replace(on_host, step_bytes=100)
    assert [steps.footprint(level).host_bytes for level in (0, 1, 2)] == [145, 15, 5]


BIG = {**CONFIG, "vocab_size": 100_000, "intermediate_size": 1000, "torch_dtype": "bfloat16"}
GATHERED = 2 * 1000 * 2 * 32 * 2  # keys and values of the longest sequence, KV heads, head size, bytes
SCORED = (1 << 24) * (2 + 8)


@pytest.mark.parametrize(
    ("config", "params", "num_bytes"),
    [
        (BIG, {}, 2048 * (4 * 256 + 3 * 1000) * 2 + GATHERED + SCORED),
        (BIG, {"max_num_batched_tokens": "1k"}, 1000 * (4 * 256 + 3 * 1000) * 2 + GATHERED + SCORED),
        (BIG, {"max_num_seqs": 200}, 2048 * 4024 * 2 + GATHERED + 200 * 100_000 * 18),
        (BIG, {"max_model_len": 100}, 2048 * 4024 * 2 + GATHERED // 10 + SCORED),
        (BIG, {"convert": "embed"}, 2048 * 4024 * 2 + GATHERED),
        (BIG, {"dtype": "float32"}, 2 * 2048 * 4024 * 2 + 2 * GATHERED + 2048 * 1000 * 5 + SCORED // 10 * 12),
        ({**BIG, "intermediate_size": 100}, {}, 2048 * (4 * 256 + 20 * 32) * 2 + GATHERED + SCORED),
        ({"architectures": ["NewForCausalLM"]}, {}, 0),
    ],
)
def test_memory_of_a_step(
    checkpoint: Path, config: Mapping[str, Any], params: Mapping[str, Any], num_bytes: int
) -> None:
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert estimated(checkpoint, **params).step_bytes == num_bytes
    assert estimated(checkpoint, engine="vllm", **params).step_bytes == 0


def test_a_tied_head_has_a_packed_copy(checkpoint: Path) -> None:
    sizes = {}
    for dtype in ("bfloat16", "float32"):
        for tied in (False, True):
            config = {**BIG, "tie_word_embeddings": tied, "torch_dtype": dtype}
            (checkpoint / "config.json").write_text(json.dumps(config))
            sizes[dtype, tied] = estimated(checkpoint).weights_bytes
    assert sizes["bfloat16", True] - sizes["bfloat16", False] == 100_000 * 256 * 2
    assert sizes["float32", True] == sizes["float32", False]


def test_measurements_count_but_are_no_upper_bound_for_an_engine_that_grows(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps(BIG))
    unasked, asked = estimated(checkpoint), estimated(checkpoint, kv_cache_memory_bytes="1G")
    used = unasked.grows_to_bytes
    assert 250 * MIB < used - activations({}, BIG).layers < unasked.host_overhead_bytes
    assert asked.grows_to_bytes == used + GIB
    for found in (unasked, asked):
        assert found.expected(None) == found.footprint()
        assert found.expected(Footprint(1)) == Footprint(found.grows_to_bytes)
        assert found.expected(Footprint(5 * GIB)) == Footprint(5 * GIB)
        assert found.expected(Footprint(1), level=1) == Footprint(1)
    machine = Machine(host_available_bytes=16 * GIB, num_gpus=1, gpu_total_bytes=80 * GIB)
    for found in (estimated(checkpoint, machine), estimated(checkpoint, engine="vllm")):
        assert found.expected(Footprint(1, 2)) == Footprint(1, 2)


@pytest.mark.parametrize(
    ("settings", "dtype", "values"),
    [
        ({"quant_method": "gptq", "bits": 4}, np.int32, 8),
        ({"quant_method": "gptq", "bits": 8}, np.int32, 4),
        ({"quant_method": "awq"}, np.int32, 8),
        (
            {"config_groups": {"a": {"weights": {"num_bits": 8}}, "b": {"weights": {"num_bits": 4}}}},
            np.int32,
            8,
        ),
        ({"quant_method": "bitsandbytes"}, np.uint8, 2),
        ({"quant_method": "compressed-tensors"}, np.int8, 1),
    ],
)
def test_quantised_weights_are_counted_as_the_embedded_engine_computes_with_them(
    settings: dict[str, Any], dtype: Any, values: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": settings}))
    tensors: dict[str, NDArray[Any]] = {"a": np.zeros(1000, np.float16), "b": np.zeros(1_000_000, dtype)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert estimated(tmp_path, engine="engine").weights_bytes == 2 * (1000 + 1_000_000 * values)
    assert estimated(tmp_path, engine="vllm").weights_bytes == 2000 + tensors["b"].nbytes


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("m-Q8_0", 16 / 8.5),
        ("m.Q4_K_M", 16 / 4.5),
        ("m-q6_k", 16 / 6.5),
        ("m-BF16", 1),
        ("m-f32", 0.5),
        ("m", 16 / 4.5),
    ],
)
def test_a_gguf_file_is_counted_by_the_type_in_its_name(name: str, times: float, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(bytes(100_000))
    assert estimated(path, engine="engine").weights_bytes == int(100_000 * times)


def test_a_folder_with_a_gguf_model_is_counted_like_the_file(tmp_path: Path) -> None:
    (tmp_path / "m-Q8_0.gguf").write_bytes(bytes(100_000))
    assert estimated(tmp_path, engine="engine").weights_bytes == int(100_000 * 16 / 8.5)


def _of_groups(weights: dict[str, Any], activations: dict[str, Any] | None) -> dict[str, Any]:
    return {"config_groups": {"group_0": {"weights": weights, "input_activations": activations}}}


@pytest.mark.parametrize(
    ("settings", "stays"),
    [
        ({"quant_method": "fp8"}, True),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, False),
        (_of_groups({"num_bits": 8, "strategy": "channel"}, {"num_bits": 8}), True),
        (_of_groups({"num_bits": 8, "strategy": "channel"}, None), False),
    ],
)
def test_on_a_gpu_weights_in_8_bits_are_counted_as_stored(
    settings: dict[str, Any], stays: bool, tmp_path: Path
) -> None:
    save_file({"a": np.zeros(1_000_000, np.int8)}, tmp_path / "model.safetensors")
    load = ModelLoad(
        tmp_path, {}, {}, {"torch_dtype": "bfloat16", "quantization_config": settings}, 1_000_000
    )
    assert dequantised(load).weights_bytes == 2_000_000
    assert dequantised(load, keeps_8_bits=True).weights_bytes == (1_000_000 if stays else 2_000_000)


def test_a_gguf_model_is_estimated_from_its_header(tmp_path: Path) -> None:
    """Llama-like: 4 layers, 2 KV heads of 8, a context of 4096; a projector isn't the engine's to load."""
    put_split(tmp_path, "m-Q4_K_M", 2)
    put_gguf(tmp_path, "mmproj-F16.gguf", content=bytes(10_000))
    found = estimated(tmp_path / "m-Q4_K_M-00001-of-00002.gguf", engine="engine")
    assert found.weights_bytes == 2 * 4 * 64 * 4, "values of both parts, in the float32 that they are in"
    assert found.kv_cache_bytes == 2 * 4 * 2 * 8 * 4 * 4096 * 64, "every sequence at its longest"
    assert found.step_bytes > 0
    assert estimated(tmp_path, engine="engine") == found, "as for the folder"
    load = read_load(str(tmp_path), {}, {})
    assert load is not None
    assert load.weights_bytes == sum(path.stat().st_size for path in tmp_path.glob("m-*.gguf"))


def test_a_gguf_model_that_pools_has_no_kv_cache(tmp_path: Path) -> None:
    put_gguf(tmp_path, "e.gguf", content=tiny("bert", pooling_type=1))
    assert estimated(tmp_path / "e.gguf", engine="engine").kv_cache_bytes == 0


def test_a_quantisation_is_found_in_the_hub_cache(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--m"
    put_gguf(repository / "snapshots" / "c1", "m-Q8_0.gguf", "m-Q4_0.gguf")
    environ = {"HF_HOME": str(tmp_path)}
    assert locate("org/m:q8_0", environ) == repository / "snapshots" / "c1" / "m-Q8_0.gguf"
    assert locate("org/m:Q6_K", environ) is None
