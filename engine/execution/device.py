"""The device and dtype that a model computes with, from the flags and the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine.errors import ConfigError, OutOfMemory

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """--device: auto, cpu or cuda. Raises ConfigError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name} isn't supported: use auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no CUDA device here.")
    return torch.device(name)


def resolve_dtype(name: str, saved_as: str | None, device: torch.device) -> torch.dtype:
    """`auto` is the checkpoint's own type, but a CPU has no units for float16: bfloat16 there.

    Raises ConfigError.
    """
    if name == "auto":
        name = (saved_as or "float32").removeprefix("torch.")
        if name == "float16" and device.type == "cpu":
            name = "bfloat16"
    if name not in _DTYPES:
        raise ConfigError(f"--dtype {name} isn't supported: use auto, float32, bfloat16 or float16.")
    return _DTYPES[name]


@contextmanager
def translated_out_of_memory() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(_described(error)) from error
    except RuntimeError as error:  # the CPU's allocator has no class of its own
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise OutOfMemory(_described(error)) from error


def _described(error: Exception) -> str:
    """What was requested and what uses the rest, without the library's advice about its own allocator."""
    text = str(error).split(" Of the allocated memory")[0].split(" If reserved but")[0].strip().rstrip(".")
    return (
        f"The model doesn't fit into memory: {text or type(error).__name__}. Free memory that other programs "
        "and models use there, use a 16-bit --dtype if the weights are wider, or a smaller model; a shorter "
        "context doesn't make weights smaller."
    )
