"""Writes the manager's table of llama-server's flags: `python -m docs.llama_flags LLAMA_SERVER`.

From what the program's `--help` prints. Berth reads it from the user's own program as well; the table is for
programs that it can't ask, and for the time before it has asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from instance_manager.backends.llama_cpp.help_text import parse_help

FILE = Path(__file__).resolve().parent.parent / "instance_manager" / "backends" / "llama_cpp" / "flags.json"


def render(text: str, build: str) -> str:
    lines = [f"  {json.dumps(flag.to_json())}" for flag in parse_help(text)]
    return f'{{\n"build": {json.dumps(build)},\n"flags": [\n' + ",\n".join(lines) + "\n]\n}\n"


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return done.stdout + done.stderr


if __name__ == "__main__":
    program = sys.argv[1]
    build = next(line for line in _output(program, "--version").splitlines() if line.startswith("version"))
    FILE.write_text(render(_output(program, "--help"), build.partition(":")[2].strip()), encoding="utf-8")
