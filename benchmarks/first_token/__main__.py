"""`python -m benchmarks.first_token [--model PATH] [--rounds N]`

Sends streamed chat requests to Berth, with one model, while the model is running, asleep at level 1,
asleep at level 2, and stopped. Prints the median and the worst time to the first text.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
_NAME = "bench"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def berth(model: Path, folder: Path) -> Iterator[httpx.Client]:
    """A client of a Berth that serves the model by name; Berth is stopped at the end of the block."""
    catalog = folder / "models.yaml"
    catalog.write_text(json.dumps({"models": {_NAME: {"path": str(model)}}}))  # JSON is YAML
    port = free_port()
    settings = {
        "APP_HOST": "127.0.0.1",
        "APP_PORT": str(port),
        "VLLM_BASE_PORT": str(free_port()),
        "VLLM_MAX_INSTANCES": "1",
        "MODELS_FILE": str(catalog),
        "LOG_DIR": str(folder / "logs"),
        "STATE_DIR": str(folder / "state"),
    }
    with (folder / "berth.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "app.py")],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300, trust_env=False) as client:
            wait_serving(client, process)
            yield client
    finally:
        process.terminate()
        process.wait(60)


def wait_serving(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if client.get("/health/readiness").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise SystemExit("Berth did not start")


def first_token_s(client: httpx.Client) -> float:
    """Seconds from the request to the first piece of text."""
    body = {
        "model": _NAME,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 8,
        "stream": True,
    }
    started = time.perf_counter()
    seconds = None
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if seconds is None and line.startswith("data: {"):
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0]["delta"].get("content"):
                    seconds = time.perf_counter() - started
    if seconds is None:
        raise SystemExit("a stream had no text")
    return seconds


def post(client: httpx.Client, path: str) -> None:
    client.post(f"/models/{_NAME}/{path}").raise_for_status()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_token", description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "berth-demo")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    states: dict[str, Callable[[httpx.Client], None]] = {
        "running": lambda client: None,
        "asleep, level 1": lambda client: post(client, "sleep?level=1"),
        "asleep, level 2": lambda client: post(client, "sleep?level=2"),
        "stopped": lambda client: post(client, "stop"),
    }
    with (
        tempfile.TemporaryDirectory(prefix="berth-bench-") as name,
        berth(options.model.resolve(), Path(name)) as client,
    ):
        first_token_s(client)
        print(f"{'the model is':20}{'median':>12}{'worst':>12}   of {options.rounds}")
        for state, prepare in states.items():
            times = []
            for _ in range(options.rounds):
                prepare(client)
                times.append(first_token_s(client))
            print(
                f"{state:20}{statistics.median(times) * 1e3:>9.1f} ms{max(times) * 1e3:>9.1f} ms", flush=True
            )


if __name__ == "__main__":
    main()
