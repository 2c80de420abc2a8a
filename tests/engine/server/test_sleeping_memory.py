"""The memory freed by sleep, measured on a real process, and the time to wake up."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from safetensors.torch import save_file

from tests.engine.server.serving import WAIT_S
from tests.engine.server.test_server_process import ROOT, port_of, process, wait_ready
from tests.engine.server.tokenizers_for_tests import byte_level_tokenizer, write_tokenizer_files

_LAYERS, _HIDDEN, _INTERMEDIATE, _HEADS, _HEAD_DIM = 12, 256, 5120, 32, 128
_PROMPT_TOKENS = 512
_RANDOM = 0.02


def write_large_model(directory: Path) -> Path:
    """Random weights of 200 MB in bfloat16 and a cache of 192 KiB per token, so few tokens fill it."""
    vocab = byte_level_tokenizer().get_vocab_size()
    width = _HEADS * _HEAD_DIM
    layer = {
        **{f"self_attn.{name}_proj.weight": (width, _HIDDEN) for name in "qkv"},
        "self_attn.o_proj.weight": (_HIDDEN, width),
        **{f"mlp.{name}_proj.weight": (_INTERMEDIATE, _HIDDEN) for name in ("gate", "up")},
        "mlp.down_proj.weight": (_HIDDEN, _INTERMEDIATE),
        "input_layernorm.weight": (_HIDDEN,),
        "post_attention_layernorm.weight": (_HIDDEN,),
    }
    shapes = {f"model.layers.{i}.{name}": shape for i in range(_LAYERS) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (vocab, _HIDDEN), "model.norm.weight": (_HIDDEN,)}
    torch.manual_seed(0)
    tensors = {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if name.endswith("norm.weight")
        else torch.randn(shape, dtype=torch.bfloat16) * _RANDOM
        for name, shape in shapes.items()
    }
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    write_tokenizer_files(directory, byte_level_tokenizer())
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": _HIDDEN,
        "intermediate_size": _INTERMEDIATE,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS,
        "head_dim": _HEAD_DIM,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@contextmanager
def sleeper(directory: Path, log: Path, *words: str) -> Iterator[tuple[psutil.Process, httpx.Client]]:
    """A ready process of this model with sleep mode, and a client for it."""
    flags = ["--model", str(directory), "--port", "0", "--enable-sleep-mode", *words]
    with (
        process(*flags, log=log) as child,
        httpx.Client(base_url=f"http://127.0.0.1:{port_of(log)}", timeout=WAIT_S, trust_env=False) as client,
    ):
        wait_ready(client, child)
        yield psutil.Process(child.pid), client


def complete(client: httpx.Client, prompt: Any, max_tokens: int = 8) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def fill(client: httpx.Client, cache_bytes: int, dtype: torch.dtype) -> None:
    """Write every block of the cache with prompts that share no prefix."""
    num_tokens = cache_bytes // (2 * _LAYERS * _HEADS * _HEAD_DIM * dtype.itemsize)
    prompts = [[2 + n, *([3] * (_PROMPT_TOKENS - 2))] for n in range(-(-num_tokens // _PROMPT_TOKENS))]
    with ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(lambda prompt: complete(client, prompt, max_tokens=1), prompts))


def held(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/memory")
    assert answer.status_code == 200, answer.text
    memory: dict[str, Any] = answer.json()
    return memory


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("dtype", "cache_bytes"), [(torch.bfloat16, 512 << 20), (torch.float32, 256 << 20)])
def test_the_memory_is_returned_to_the_system(dtype: torch.dtype, cache_bytes: int, tmp_path: Path) -> None:
    """bfloat16 weights are packed copies of the checkpoint's, float32 weights are converted copies."""
    directory = write_large_model(tmp_path / "model")
    words = ["--dtype", str(dtype).removeprefix("torch."), "--max-model-len", "600"]
    words += ["--kv-cache-memory-bytes", str(cache_bytes)]
    with sleeper(directory, tmp_path / "log", *words) as (engine, client):
        before = complete(client, "abcdef" * 20)["choices"][0]["text"]
        awake = held(client)
        assert awake["kv_cache"] == pytest.approx(cache_bytes, rel=0.02)
        assert awake["weights"] > 90e6 * dtype.itemsize
        fill(client, cache_bytes, dtype)
        full = engine.memory_info().rss
        for level in (1, 2):
            assert client.post(f"/sleep?level={level}").status_code == 200
            gone = full - engine.memory_info().rss
            assert gone >= 0.9 * (awake["kv_cache"] + (awake["weights"] if level == 2 else 0))
        asleep = engine.memory_info().rss
        assert client.post("/wake_up").json() == {"status": "awake", "tags": None}
        again = complete(client, "abcdef" * 20)
        assert again["choices"][0]["text"] == before
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert held(client) == awake
        assert client.post("/sleep?level=2").status_code == 200
        assert engine.memory_info().rss == pytest.approx(asleep, rel=0.1), "no sleep leaves more behind"


@pytest.mark.timeout(120)
def test_the_demo_model_wakes_up_fast(tmp_path: Path) -> None:
    with sleeper(ROOT / "models" / "berth-demo", tmp_path / "log") as (_, client):
        before = complete(client, "Hello")["choices"][0]["text"]
        for level, limit_s in ((1, 0.1), (2, 0.5)):
            times = []
            for _ in range(9):
                assert client.post(f"/sleep?level={level}").status_code == 200
                started = time.perf_counter()
                assert client.post("/wake_up").status_code == 200
                times.append(time.perf_counter() - started)
            assert statistics.median(times) < limit_s
            assert complete(client, "Hello")["choices"][0]["text"] == before
