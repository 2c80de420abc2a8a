"""`python -m benchmarks.proxy [--quick] [--rounds N] [--json FILE]`: the cost of forwarding.

A C upstream and a C load generator share core 0, the proxy under test has core 1; all contenders run in
every round, one after the other, and the table shows the medians over the rounds. The exit code is always 0;
the targets are printed next to the results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.proxy.contenders import LOAD_CORE, Running, compile_tools, contenders, free_port, pin, start


@dataclass(frozen=True)
class Scenario:
    """One load: the arguments for the C tool, and its duration in seconds."""

    name: str
    mode: str
    clients: int
    seconds: float
    interval_us: int = 0

    def argv(self, contender: Running) -> list[str]:
        argv = [self.mode, str(contender.port), contender.prefix, str(self.clients)]
        if self.mode == "json":
            return [*argv, str(self.seconds)]
        num_events = int(self.seconds * 1e6 / self.interval_us) if self.interval_us else 10**7
        # Paced streams are cut after 1.5 × their duration: a proxy that can't keep up shows it.
        limit_s = self.seconds * 1.5 if self.interval_us else self.seconds
        return [*argv, str(num_events), str(self.interval_us), str(limit_s)]


@dataclass(frozen=True)
class Result:
    per_s: float
    p50_us: float
    p99_us: float
    cpu_us: float  # the proxy's CPU time per request or event
    errors: float


def scenarios(scale: float) -> list[Scenario]:
    return [
        Scenario("json32", "json", 32, 2.0 * scale),
        Scenario("json1", "json", 1, 1.0 * scale),
        Scenario("sse10", "sse", 10, 2.0 * scale, 5000),
        Scenario("sse100", "sse", 100, 6.0 * scale, 5000),  # long, so that a hundred starts do not matter
        Scenario("unpaced8", "sse", 8, 1.5 * scale),
    ]


def measure(load: Path, contender: Running, scenario: Scenario) -> Result:
    before = contender.cpu_s()
    process = subprocess.Popen([str(load), *scenario.argv(contender)], stdout=subprocess.PIPE)
    pin(process, LOAD_CORE)
    out, _ = process.communicate(timeout=120)
    if process.returncode:
        raise SystemExit(f"the load generator failed against {contender.name}")
    figures = json.loads(out)
    count = max(1, figures["count"])
    cpu_us = (contender.cpu_s() - before) * 1e6 / count
    per_s = figures["count"] / max(figures["seconds"], 1e-9)
    return Result(per_s, figures["p50_us"], figures["p99_us"], cpu_us, figures["errors"])


def median(results: list[Result]) -> Result:
    columns = zip(*((r.per_s, r.p50_us, r.p99_us, r.cpu_us, r.errors) for r in results), strict=True)
    return Result(*(statistics.median(column) for column in columns))


def print_table(table: dict[str, dict[str, Result]]) -> None:
    direct = table["direct"]
    heads = (
        "JSON req/s",
        "CPU us/req",
        "+p50 us",
        "SSE +p50",
        "SSE +p99",
        "chunks/s",
        "CPU us/chunk",
        "unpaced/s",
        "errors",
    )
    print(f"{'':16}" + "".join(f"{head:>14}" for head in heads))
    for name, results in table.items():
        json32, json1, sse10, sse100 = (results[key] for key in ("json32", "json1", "sse10", "sse100"))
        cells = (
            f"{json32.per_s:,.0f}",
            f"{json32.cpu_us:.1f}",
            f"{json1.p50_us - direct['json1'].p50_us:.0f}",
            f"{sse10.p50_us - direct['sse10'].p50_us:.0f}",
            f"{sse10.p99_us - direct['sse10'].p99_us:.0f}",
            f"{sse100.per_s:,.0f}",
            f"{sse100.cpu_us:.1f}",
            f"{results['unpaced8'].per_s:,.0f}",
            f"{sum(result.errors for result in results.values()):.0f}",
        )
        print(f"{name:16}" + "".join(f"{cell:>14}" for cell in cells))


def print_bars(table: dict[str, dict[str, Result]]) -> None:
    berth, direct = table["berth"], table["direct"]
    bars = [
        ("added latency, 1 connection, p50 us", berth["json1"].p50_us - direct["json1"].p50_us, "<=", 200.0),
        ("SSE, 100 streams, chunks/s of 20,000", berth["sse100"].per_s, ">=", 19_800.0),
        ("SSE, added delay per chunk, p50 us", berth["sse10"].p50_us - direct["sse10"].p50_us, "<=", 100.0),
    ]
    if nginx := table.get("nginx"):
        ratio = berth["json32"].per_s / nginx["json32"].per_s
        cpu = berth["sse100"].cpu_us / max(nginx["sse100"].cpu_us, 1e-9)
        bars.insert(0, ("JSON req/s over nginx's (stretch 0.6)", ratio, ">=", 0.25))
        bars.append(("SSE CPU per chunk over nginx's", cpu, "<=", 2.5))
    else:
        print("nginx is not installed: no ratios to it")
    httpx = berth["json32"].per_s / max(table["fastapi+httpx"]["json32"].per_s, 1e-9)
    bars.insert(1, ("JSON req/s over FastAPI + httpx's", httpx, ">=", 40.0))
    by_name = table["berth by name"]
    bars.append(
        ("by name: JSON req/s over /proxy/'s", by_name["json32"].per_s / berth["json32"].per_s, ">=", 0.9)
    )
    latency = by_name["json1"].p50_us / berth["json1"].p50_us
    bars.append(("by name: latency over /proxy/'s, p50", latency, "<=", 1.1))
    print()
    for what, value, sign, bar in bars:
        met = value >= bar if sign == ">=" else value <= bar
        print(f"{what:44}{value:>12,.2f}   bar {sign} {bar:,g}   {'met' if met else 'MISSED'}")


def run(rounds: int, scale: float, json_file: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="berth-bench-") as name:
        folder = Path(name)
        upstream, load = compile_tools(folder)
        port = free_port()
        engine = start("upstream", [str(upstream), str(port)], port, core=LOAD_CORE)
        running: list[Running] = []
        samples: dict[str, dict[str, list[Result]]] = {}
        try:
            running = contenders(port, folder)
            for number in range(rounds):
                for scenario in scenarios(scale):  # contenders run one right after the other
                    print(f"round {number + 1} of {rounds}: {scenario.name}", file=sys.stderr)
                    for contender in running:
                        result = measure(load, contender, scenario)
                        samples.setdefault(contender.name, {}).setdefault(scenario.name, []).append(result)
        finally:
            for contender in (*running, engine):
                contender.stop()
    table = {name: {key: median(results) for key, results in by.items()} for name, by in samples.items()}
    print_table(table)
    print_bars(table)
    if json_file is not None:
        plain = {name: {key: vars(result) for key, result in by.items()} for name, by in table.items()}
        json_file.write_text(json.dumps(plain, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proxy", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: a smoke test of half a minute")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the medians to this file")
    options = parser.parse_args()
    run(1 if options.quick else options.rounds, 0.4 if options.quick else 1.0, options.json)


if __name__ == "__main__":
    main()
