"""Which GPU and software these are, and the two rates that bound everything else."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
from collections.abc import Callable

import torch

from benchmarks.gpu.table import print_table

_COPY_BYTES = 4 << 30
_MATRIX_SIZE = 8192


def milliseconds(run: Callable[[], object], *, repeat: int = 10, warm_up: int = 3) -> float:
    """The median time of one run on the GPU, by its own clock."""
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


def bytes_per_second() -> float:
    """Read and written, of a copy that no cache holds."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / milliseconds(lambda: target.copy_(source)) * 1e3


def operations_per_second() -> float:
    """Of a product of bfloat16 matrices with random elements."""
    a, b = torch.randn(2, _MATRIX_SIZE, _MATRIX_SIZE, dtype=torch.bfloat16, device="cuda")
    return 2.0 * _MATRIX_SIZE**3 / milliseconds(lambda: a @ b) * 1e3


def main() -> None:
    properties = torch.cuda.get_device_properties(0)
    rows = [
        ("GPU", f"{properties.name}, {properties.multi_processor_count} processors"),
        ("memory", f"{properties.total_memory / 2**30:.1f} GiB"),
        ("Python", platform.python_version()),
        ("CUDA of torch", str(torch.version.cuda)),
        *((name, _version(name)) for name in ("torch", "triton", "transformers", "numpy", "safetensors")),
        ("copy, read + written", f"{bytes_per_second() / 1e12:.2f} TB/s"),
        ("bfloat16 product", f"{operations_per_second() / 1e12:.0f} TFLOP/s"),
    ]
    print_table(("what", "value"), rows)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
