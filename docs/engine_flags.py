"""Writes the manager's table of the embedded engine's flags: `python -m docs.engine_flags`.

The manager does not import the engine; a test compares the file with the engine's parser."""

from __future__ import annotations

import json
from pathlib import Path

from engine.launch.flag_table import flag_table

FILE = Path(__file__).resolve().parent.parent / "instance_manager" / "backends" / "engine_flags.json"


def render() -> str:
    table = flag_table()
    lines = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in table.pop("flags").items()]
    head = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in table.items())
    return "{\n" + head + '"flags": {\n' + ",\n".join(lines) + "\n}\n}\n"


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
