"""Checks and measures the engine on a GPU, and writes what it found as Markdown.

    python -m benchmarks.gpu [--out FILE] [PART …]

Needs torch, triton, numpy and safetensors; with transformers it compares bfloat16 too. Each part runs in a
process of its own, so that none disturbs another, and one that fails doesn't end the rest.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

PARTS = {
    "machine": 60,
    "kernels": 120,
    "tokens": 90,
    "sleep": 90,
    "speed": 180,
    "profile": 90,
}
"""Name, which is the module's too, → the seconds that it may take."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--out", type=Path, help="write the Markdown to this file too")
    parser.add_argument("--here", action="store_true", help="run the parts in this process")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}")
    if arguments.here:
        for part in arguments.parts:
            importlib.import_module(f"benchmarks.gpu.{part}").main()
        return 0
    failed = []
    text = ""
    for part in arguments.parts or PARTS:
        started = time.monotonic()
        output, has_failed = _run(part, PARTS[part])
        failed += [part] * has_failed
        section = f"## {part}\n\n{output}\n\n_{time.monotonic() - started:.0f} s_\n\n"
        print(section, flush=True)
        text += section
        if arguments.out:
            arguments.out.write_text(text)
    if failed:
        print(f"Failed: {', '.join(failed)}.")
    return 1 if failed else 0


def _run(part: str, limit_s: float) -> tuple[str, bool]:
    """A part's Markdown, and whether it failed."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.pop("TRITON_INTERPRET", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", "--here", part],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        output = process.communicate()[0] + f"\n**Stopped after {limit_s:.0f} s.**"
    return output.strip(), process.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
