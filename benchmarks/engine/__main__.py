"""`python -m benchmarks.engine [--model DIR] [--transformers] [--peer-python PATH] [--rounds N] …`

Starts the embedded engine, once more with its model divided between two processes (`--tensor-parallel-size`;
1 = leave that out), with `--transformers` once more by transformers' code, and with `--peer-python` vLLM from
that interpreter; applies the same streaming
load to each in turn, round by round, and prints medians and ratios. The default model ships with the
repository and is tiny: use a checkpoint of a realistic size for meaningful figures.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Iterable
from pathlib import Path

from benchmarks.engine.client import Figures, Load, measure
from benchmarks.engine.servers import Server, start_berth, start_by_transformers, start_vllm

DEMO = Path(__file__).resolve().parents[2] / "models" / "berth-demo"


def loads(streams: Iterable[int], output_tokens: int) -> list[Load]:
    """Decoding at each number of streams, then the time to the first token of one long prompt."""
    decoding = [Load(n, max(2, n), 128, output_tokens) for n in streams]
    return [*decoding, Load(1, 2, 1024, 2)]


def median(figures: list[Figures]) -> Figures:
    columns = zip(*((f.tokens_per_s, f.ttft_ms, f.tpot_ms) for f in figures), strict=True)
    return Figures(*(statistics.median(column) for column in columns))


def run(servers: list[Server], wanted: list[Load], rounds: int) -> dict[tuple[Load, str], Figures]:
    """Medians per load and server, after a short load that warms each server up."""
    results: dict[tuple[Load, str], list[Figures]] = {}
    for server in servers:
        asyncio.run(measure(server.port, "bench", Load(8, 8, 128, 8), seed=0))
    for number in range(1, rounds + 1):
        for load in wanted:
            for server in servers:
                figures = asyncio.run(measure(server.port, "bench", load, seed=number))
                results.setdefault((load, server.name), []).append(figures)
    return {key: median(figures) for key, figures in results.items()}


def print_table(results: dict[tuple[Load, str], Figures], servers: list[Server]) -> None:
    for server in servers:
        print(f"{server.name}: /health answered 200 after {server.start_s:.1f} s")
    heads = ("server", "streams", "prompt", "output", "tokens/s", "TTFT ms", "TPOT ms", "ratio")
    print("".join(f"{head:>10}" for head in heads))
    for (load, name), figures in results.items():
        peer = results.get((load, "vllm" if name == "berth" else "berth"))
        # With two output tokens, the time to the first token is what matters.
        is_prefill = load.output_tokens <= 2
        ratio = ""
        if peer is not None and name != "vllm":
            gain = peer.ttft_ms / figures.ttft_ms if is_prefill else figures.tokens_per_s / peer.tokens_per_s
            ratio = f"{gain:.2f}"
        cells = (
            name,
            str(load.streams),
            str(load.prompt_tokens),
            str(load.output_tokens),
            f"{figures.tokens_per_s:.1f}",
            f"{figures.ttft_ms:.0f}",
            f"{figures.tpot_ms:.1f}",
            ratio,
        )
        print("".join(f"{cell:>10}" for cell in cells))
    print(
        "ratio: berth over vllm, the others over berth; above 1 = faster; for two output tokens, of the "
        "time to the first token"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.engine", description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--peer-python", help="interpreter of an environment with vLLM")
    parser.add_argument("--transformers", action="store_true", help="also with --model-impl transformers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", default="1,8,32")
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--tensor-parallel-size", type=int, default=2)
    arguments = parser.parse_args()
    wanted = loads((int(n) for n in arguments.streams.split(",")), arguments.output_tokens)
    servers: list[Server] = []
    try:
        servers.append(start_berth(arguments.model))
        if arguments.transformers:
            servers.append(start_by_transformers(arguments.model))
        if arguments.tensor_parallel_size > 1:
            servers.append(start_berth(arguments.model, arguments.tensor_parallel_size))
        if arguments.peer_python:
            servers.append(start_vllm(arguments.peer_python, arguments.model))
        print_table(run(servers, wanted, arguments.rounds), servers)
    finally:
        for server in servers:
            server.stop()


if __name__ == "__main__":
    main()
