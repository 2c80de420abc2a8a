"""Eight GPUs that don't exist. See pynvml.py beside this file for how they answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GIB = 1 << 30
DIRECTORY = Path(__file__).parent  # for PYTHONPATH


def uuid(index: int) -> str:
    return f"GPU-{index:08x}-fake-4e56-4d4c-00000000000{index}"


def describe_gpus(count: int = 8, total: int = 80 * GIB) -> list[dict[str, Any]]:
    """What the file FAKE_NVML names holds under "gpus": alike and empty."""
    return [
        {"uuid": uuid(index), "name": "Fake H100", "total": total, "free": total, "processes": {}}
        for index in range(count)
    ]


def write_gpus(path: Path, gpus: list[dict[str, Any]]) -> None:
    """Change at one stroke what the driver says."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps({"gpus": gpus}))
    beside.replace(path)
