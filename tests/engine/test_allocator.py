"""What a process keeps for itself: measured in one of its own, before a library has read its settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

import pytest
import torch

from engine.models.layers import packed_linear
from tests.engine.server.test_server_process import ROOT

_PRODUCTS_OF_MANY_SHAPES = """
import ctypes, json, os
from engine.execution.allocator import keep_few_kernels, return_freed_memory
keep_few_kernels()
import torch
from engine.models.layers import packed_linear
weight = packed_linear.pack(torch.zeros(192, 192, dtype=torch.bfloat16))
def private_kb():
    return_freed_memory()
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
def multiply(rows):
    for size in rows:
        packed_linear.multiply(torch.zeros(size, 192, dtype=torch.bfloat16), weight)
torch.set_num_threads(1)
with torch.inference_mode():
    multiply(range(1, 300))
    before = private_kb()
    multiply(range(300, 700))
    print(json.dumps({"grown_mib": (private_kb() - before) / 1024}))
"""


def _grown_mib(environ: Mapping[str, str]) -> float:
    command = [sys.executable, "-c", _PRODUCTS_OF_MANY_SHAPES]
    env = {**os.environ, **environ}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=100, check=True)
    return float(json.loads(done.stdout)["grown_mib"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is a process's own")
@pytest.mark.skipif(not packed_linear.is_available(torch.bfloat16), reason="nothing is packed here")
@pytest.mark.timeout(120)
def test_kernels_of_many_shapes_do_not_pile_up() -> None:
    assert _grown_mib({}) < 16


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is a process's own")
@pytest.mark.skipif(not packed_linear.is_available(torch.bfloat16), reason="nothing is packed here")
@pytest.mark.timeout(120)
def test_an_operator_may_have_more_kept() -> None:
    """And so the test before this one would see it."""
    assert _grown_mib({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024", "LRU_CACHE_CAPACITY": "1024"}) > 64
