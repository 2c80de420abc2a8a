"""Which device and software these are, and the two rates that bound everything else."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.gpu import REHEARSAL
from benchmarks.gpu.table import print_table

REHEARSES = os.environ.get(REHEARSAL) == "1"
DEVICE = torch.device("cpu" if REHEARSES else "cuda")
_COPY_BYTES = 1 << 20 if REHEARSES else 4 << 30
_MATRIX_SIZE = 64 if REHEARSES else 8192


def milliseconds(run: Callable[[], object], *, repeat: int = 10, warm_up: int = 3) -> float:
    """The median time of one run on the GPU, by its own clock."""
    if REHEARSES:
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) * 1e3
    for _ in range(warm_up):
        run()
    times = []
    for _ in range(repeat):
        start, stop = _event(), _event()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(float(start.elapsed_time(stop)))
    return statistics.median(times)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def synchronize() -> None:
    if not REHEARSES:
        torch.cuda.synchronize()


def num_processors() -> int:
    if REHEARSES:
        return 2
    count: int = torch.cuda.get_device_properties(DEVICE).multi_processor_count
    return count


def bytes_per_second() -> float:
    """Read and written, of a copy that no cache holds."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / milliseconds(lambda: target.copy_(source)) * 1e3


def operations_per_second() -> float:
    """Of a product of bfloat16 matrices with random elements."""
    a, b = torch.randn(2, _MATRIX_SIZE, _MATRIX_SIZE, dtype=torch.bfloat16, device=DEVICE)
    return 2.0 * _MATRIX_SIZE**3 / milliseconds(lambda: a @ b) * 1e3


def main() -> None:
    rows = [
        ("device", _device_name()),
        ("Python", platform.python_version()),
        ("CUDA of torch", str(torch.version.cuda)),
        *((name, _version(name)) for name in ("torch", "triton", "numpy", "safetensors")),
        ("copy, read + written", f"{bytes_per_second() / 1e12:.2f} TB/s"),
        ("bfloat16 product", f"{operations_per_second() / 1e12:.0f} TFLOP/s"),
    ]
    print_table(("what", "value"), rows)


def _device_name() -> str:
    if REHEARSES:
        return "a CPU"
    properties = torch.cuda.get_device_properties(DEVICE)
    memory = properties.total_memory / 2**30
    return f"{properties.name}, {properties.multi_processor_count} processors, {memory:.0f} GiB"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
