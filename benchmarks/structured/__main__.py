"""`python -m benchmarks.structured --model DIR [--streams N] [--steps N] [--rounds N]`

Decodes the same prompts free and bound to a JSON schema, in turns in one process, and prints the medians of a
step and their ratio. Sampling is at temperature 1 on both sides, without the end-of-sequence token.
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
_SCHEMA = {"type": "array", "items": _PERSON, "minItems": 1000}  # never over within the steps that count


def decode(
    core: EngineCore, name: str, streams: int, steps: int, constrain: Callable[[], TokenConstraint] | None
) -> float:
    """The median of a step in seconds, once all streams decode."""
    for index in range(streams):
        constraint = None if constrain is None else constrain()
        prompt = [(index * 7919 + place) % 1000 + 5 for place in range(_PROMPT_TOKENS)]
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
        began = time.perf_counter()
        deltas = core.step()
        if len(deltas) == streams:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def schema_of(model: Path) -> Callable[[], TokenConstraint]:
    """What makes a constraint for each sequence."""
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
    constrain = schema_of(args.model)
    free: list[float] = []
    bound: list[float] = []
    for turn in range(args.rounds):
        sides = [(free, None), (bound, constrain)]
        for times, how in sides if turn % 2 else reversed(sides):  # neither always the first
            times.append(decode(core, f"{turn}-{how is None}", args.streams, args.steps, how))
        print(f"round {turn}: free {free[-1] * 1e3:.2f} ms, bound {bound[-1] * 1e3:.2f} ms", flush=True)
    ratios = [b / f for f, b in zip(free, bound, strict=True)]
    print(
        f"{args.streams} streams: free {statistics.median(free) * 1e3:.2f} ms, "
        f"bound {statistics.median(bound) * 1e3:.2f} ms a step; ratio {statistics.median(ratios):.3f}"
    )


if __name__ == "__main__":
    main()
