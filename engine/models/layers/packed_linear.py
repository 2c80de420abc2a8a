"""Matrix multiplication with weights that oneDNN has packed for this CPU: 1.5 to 2 times as fast.

The operators are private parts of PyTorch, so they are looked up and tested at run time; if they are missing
or wrong, `is_available` is False and the caller uses `torch.nn.functional.linear`.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F

# The number of rows that the packing is tuned for. Measured with 1, 8, 32 and 64: equal for 1 to 32 rows.
_ROWS_HINT = 32
_TOLERANCES = {torch.bfloat16: 2e-2, torch.float32: 1e-5}


@cache
def is_available(dtype: torch.dtype) -> bool:
    """Whether weights of this type can be packed here, and multiplying by them gives correct results."""
    tolerance = _TOLERANCES.get(dtype)
    if tolerance is None or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        x = torch.linspace(-1, 1, 3 * 64, dtype=dtype).view(3, 64)
        weight = torch.linspace(-1, 1, 32 * 64, dtype=dtype).view(32, 64)
        ours, plain = multiply(x, pack(weight)).float(), F.linear(x, weight).float()
        return torch.allclose(ours, plain, rtol=tolerance, atol=tolerance)
    except (AttributeError, NotImplementedError, RuntimeError):  # no such operator in this build
        return False


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Copy a weight [out, in] into oneDNN's own layout; the result is opaque, for `multiply` only."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_HINT)
    return packed


def multiply(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """[..., in] times a packed weight plus a bias [out]: [..., out]."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return product
