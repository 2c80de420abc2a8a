"""The servers under test: Berth's embedded engine, and vLLM in its fastest configuration on a CPU."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from benchmarks.proxy.contenders import free_port

START_TIMEOUT_S = 300.0
LENGTH = ["--max-model-len", "2048", "--max-num-seqs", "64"]


@dataclass
class Server:
    """A started server; `start_s` is the time from its spawn to the first 200 of `/health`."""

    name: str
    port: int
    start_s: float
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_berth(model: Path, num_ranks: int = 1) -> Server:
    name = "berth" if num_ranks == 1 else f"berth-tp{num_ranks}"
    words = ["--tensor-parallel-size", str(num_ranks)]
    return _start(name, [sys.executable, "-m", "engine", *words], model, {})


def start_by_transformers(model: Path) -> Server:
    """Berth's engine with transformers' code for the model."""
    return _start("transformers", [sys.executable, "-m", "engine", "--model-impl", "transformers"], model, {})


def start_vllm(python: str, model: Path) -> Server:
    """vLLM's CPU build, fastest: compiled, bound to both cores, tcmalloc and its own OpenMP preloaded."""
    preloaded = [
        *sorted(glob.glob("/usr/lib/*/libtcmalloc_minimal.so.4")),
        *sorted(glob.glob(f"{Path(python).parent.parent}/lib/libiomp5.so")),
    ]
    env = {
        "VLLM_USE_AOT_COMPILE": "0",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CPU_OMP_THREADS_BIND": "0-1",
        "LD_PRELOAD": ":".join(preloaded),
    }
    argv = [python, "-m", "vllm.entrypoints.openai.api_server", "--no-enable-prefix-caching"]
    return _start("vllm", argv, model, env)


def _start(name: str, argv: list[str], model: Path, env: dict[str, str]) -> Server:
    port = free_port()
    flags = [
        "--model",
        str(model),
        "--served-model-name",
        "bench",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            [*argv, *flags, "--dtype", "bfloat16", *LENGTH],
            env={**os.environ, **env},
            stdout=log,
            stderr=log,
        )
        server = Server(name, port, 0.0, process)
        while not _is_healthy(port):
            if process.poll() is not None or time.perf_counter() - started > START_TIMEOUT_S:
                server.stop()
                log.seek(0)
                raise SystemExit(f"{name} does not serve:\n{log.read().decode(errors='replace')[-3000:]}")
            time.sleep(0.05)
        server.start_s = time.perf_counter() - started
    return server


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
