"""`python -m benchmarks.structured --model DIR [--streams N] [--steps N] [--rounds N]`

Decodes the same prompts without and with a JSON schema, alternating in one process, and prints the median
times of a step and their ratio. Both sample at temperature 1, without the end-of-sequence token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.types import EngineRequest, SamplingParams, TokenConstraint
from engine.execution.build import build_core
from engine.structured.grammar_compiler import GrammarCompiler
from engine.structured.spec import StructuredKind, StructuredOutput
from engine.text.tokenizer import load_tokenizer

_PROMPT_TOKENS = 32
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer"},
        "role": {"enum": ["author", "editor", "reader"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}},
    },
    "required": ["name", "age", "role", "tags"],
    "additionalProperties": False,
}
_SCHEMA = {"type": "array", "items": _PERSON, "minItems": 1000}  # longer than any measured output


def decode(
    core: EngineCore, name: str, streams: int, steps: int, constrain: Callable[[], TokenConstraint] | None
) -> float:
    """The median of a step in seconds, once all streams decode."""
    for index in range(streams):
        constraint = None if constrain is None else constrain()
        prompt = [(index * 7919 + position) % 1000 + 5 for position in range(_PROMPT_TOKENS)]
        params = SamplingParams(max_tokens=steps + 8, temperature=1.0, seed=index, ignore_eos=True)
        request = EngineRequest(
            request_id=f"{name}-{index}",
            prompt_token_ids=prompt,
            params=params,
            arrival_time=time.monotonic(),
            constraint=constraint,
        )
        core.add(request)
    times: list[float] = []
    while core.has_work:
        started = time.perf_counter()
        deltas = core.step()
        if len(deltas) == streams:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def make_constraints(model: Path) -> Callable[[], TokenConstraint]:
    """A function that makes a constraint for each sequence."""
    tokenizer = load_tokenizer(model)
    eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    vocab_size = json.loads((model / "config.json").read_bytes())["vocab_size"]
    grammar_compiler = GrammarCompiler(tokenizer, vocab_size=vocab_size, eos_token_ids=eos)
    wanted = StructuredOutput(StructuredKind.JSON_SCHEMA, json.dumps(_SCHEMA), "response_format")
    compiled = asyncio.run(grammar_compiler.compile(wanted))
    return lambda: grammar_compiler.constraint(compiled)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structured")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    core = build_core(EngineConfig(model=args.model, max_num_seqs=args.streams, max_model_len=512))
    constrain = make_constraints(args.model)
    free: list[float] = []
    constrained: list[float] = []
    for turn in range(args.rounds):
        sides = [(free, None), (constrained, constrain)]
        for times, make in sides if turn % 2 else reversed(sides):  # each is first every other time
            times.append(decode(core, f"{turn}-{make is None}", args.streams, args.steps, make))
        print(
            f"round {turn}: free {free[-1] * 1e3:.2f} ms, constrained {constrained[-1] * 1e3:.2f} ms",
            flush=True,
        )
    ratios = [c / f for f, c in zip(free, constrained, strict=True)]
    print(
        f"{args.streams} streams: free {statistics.median(free) * 1e3:.2f} ms, "
        f"constrained {statistics.median(constrained) * 1e3:.2f} ms per step; "
        f"ratio {statistics.median(ratios):.3f}"
    )


if __name__ == "__main__":
    main()
