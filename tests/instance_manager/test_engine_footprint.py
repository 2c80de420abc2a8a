"""The peak memory of a real embedded engine, compared with the estimate before its first run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from instance_manager.backends import BACKENDS
from instance_manager.memory.checkpoint_size import read_load
from instance_manager.memory.device_memory import private_bytes
from instance_manager.memory.kv_cache_size import Machine
from tests.berth_process import ROOT
from tests.engine.server.test_sleeping_memory import complete, sleeper

DEMO = ROOT / "models" / "berth-demo"
CACHE_BYTES = 16_000_000
GIB = 1 << 30
LONGEST = 2040  # tokens: the demo model has seen 2048 at once
TOKEN_BYTES = 2 * 7 * 2 * 32 * 2  # keys and values, layers, heads, head size, bytes
NUM_SHAPES = 150  # lengths of prompts


@contextmanager
def peak_of(process: psutil.Process) -> Iterator[list[int]]:
    """Its only element is the process's peak so far, in bytes."""
    peak = [private_bytes(process)]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            peak[0] = max(peak[0], private_bytes(process))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def prompt_of(number: int, length: int) -> list[int]:
    """Token ids whose beginning no other prompt shares."""
    return [10 + number, *(10 + (number * 7 + place) % 3000 for place in range(length - 1))]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is a process's own")
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_no_engine_outgrows_its_estimate(tmp_path: Path) -> None:
    params = {"kv_cache_memory_bytes": CACHE_BYTES, "num_threads": 1, "device": "cpu"}
    load = read_load(str(DEMO), params, {})
    assert load is not None
    guess = BACKENDS["engine"].estimate(load, Machine(host_available_bytes=16 * GIB))
    flags = ["--kv-cache-memory-bytes", str(CACHE_BYTES), "--num-threads", "1", "--device", "cpu"]
    with sleeper(DEMO, tmp_path / "log", *flags) as (process, client):
        with peak_of(process) as peak, ThreadPoolExecutor(16) as pool:
            for number in range(CACHE_BYTES // TOKEN_BYTES // LONGEST + 1):
                complete(client, prompt_of(number, LONGEST), max_tokens=1)  # until the cache is full
            prompts = [prompt_of(100 + number, 3 + number) for number in range(NUM_SHAPES)]
            list(pool.map(lambda prompt: complete(client, prompt), prompts))
            body = {"prompt": prompt_of(0, LONGEST), "max_tokens": 1, "prompt_logprobs": 1}
            assert client.post("/v1/completions", json=body).status_code == 200
        assert peak[0] <= guess.footprint().host_bytes
        for level in (1, 2):
            assert client.post(f"/sleep?level={level}").status_code == 200
            assert private_bytes(process) <= guess.footprint(level).host_bytes
