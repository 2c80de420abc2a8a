"""Matrix products of 8-bit numbers with a scale for each row, by PyTorch's own kernels.

The operators are private parts of PyTorch, or of one device only, so they are tried at run time: if they are
missing, raise, or are wrong, `is_available` is False, and the weights are dequantised when they are loaded.
"""

from __future__ import annotations

import logging
import os
from functools import cache

import torch

SWITCH = "BERTH_SCALED_PRODUCTS"  # environment: 0 = dequantise all weights
_LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
_FIRST_CAPABILITY = {torch.float8_e4m3fn: (8, 9), torch.int8: (8, 0)}  # of NVIDIA's devices
_MULTIPLE = 16  # of a matrix's rows and columns
_MIN_ROWS = 32  # of the other factor, for int8 on a GPU: more than 16, and whole tiles
_TOLERANCE = 2e-2  # relative, as bfloat16 has it after both factors are quantised alike

log = logging.getLogger(__name__)


def keeps(device: torch.device, dtype: torch.dtype, shape: tuple[int, int]) -> bool:
    """Whether a layer multiplies by weights [out, in] of this type as they are stored. Not on a CPU."""
    if device.type != "cuda" or dtype not in _LARGEST or os.environ.get(SWITCH) == "0":
        return False
    fits = not any(size % _MULTIPLE for size in shape)
    return (
        fits
        and torch.cuda.get_device_capability(device) >= _FIRST_CAPABILITY[dtype]
        and _tried(device, dtype)
    )


@cache
def _tried(device: torch.device, dtype: torch.dtype) -> bool:
    problem = problem_with(device, dtype)
    name = str(dtype).removeprefix("torch.")
    if problem is None:
        log.info("Weights in %s stay as they are stored: PyTorch multiplies by them on %s.", name, device)
    else:
        log.warning("Weights in %s are dequantised: PyTorch can't multiply by them here (%s).", name, problem)
    return problem is None


def problem_with(device: torch.device, dtype: torch.dtype) -> str | None:
    """What a small product says; None if it is right."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 64, generator=generator).to(device)
    weight, scales = quantise_rows(torch.randn(48, 64, generator=generator).to(device), dtype)
    values, x_scales = quantise_rows(x, dtype)
    expected = (values.float() * x_scales) @ (weight.float() * scales).T
    try:
        found = multiply(x.bfloat16(), weight, scales.T.contiguous()).float()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    difference = float((found - expected).norm() / expected.norm())
    return None if difference <= _TOLERANCE else f"it is wrong by {difference:.1%}"


def quantise_rows(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, columns] → the same in 8 bits, and each row's scale: float32 [rows, 1]."""
    largest = _LARGEST[dtype]
    x = x.float()
    scales = x.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-12) / largest
    values = (x / scales).clamp_(-largest, largest)
    return (values.round_() if dtype is torch.int8 else values).to(dtype), scales


def multiply(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x [T, in], whose rows are quantised here, times weight [out, in], whose rows have scales [1, out]."""
    values, x_scales = quantise_rows(x, weight.dtype)
    if weight.dtype is torch.int8:
        return _of_integers(values, weight).mul_(x_scales).mul_(scales).to(x.dtype)
    # Scales for rows give bfloat16 only.
    product = torch._scaled_mm(values, weight.T, scale_a=x_scales, scale_b=scales, out_dtype=torch.bfloat16)
    return product.to(x.dtype)


def _of_integers(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Float32 [T, out]; exact."""
    num_rows = values.shape[0]
    if values.device.type == "cuda" and num_rows < _MIN_ROWS:
        values = torch.nn.functional.pad(values, (0, 0, 0, _MIN_ROWS - num_rows))
    return torch._int_mm(values, weight.T)[:num_rows].float()
