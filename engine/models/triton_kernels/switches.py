"""Whether a GPU runs our Triton kernels and CUDA graphs: only if the environment asks for them.

Tests run the kernels by Triton's interpreter; nobody has measured them on a GPU. `make check-gpu` does. This
module doesn't import Triton.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import cache

log = logging.getLogger(__name__)

KERNELS = "BERTH_TRITON_KERNELS"  # environment: 1 = our kernels instead of PyTorch's operators
GRAPHS = "BERTH_CUDA_GRAPHS"  # environment: 1 = decode steps as CUDA graphs, which our kernels make possible


@cache
def uses_triton(device_type: str) -> bool:
    """The log says why not, if it was asked for."""
    if device_type != "cuda" or os.environ.get(KERNELS) != "1":
        return False
    if importlib.util.find_spec("triton") is None:
        log.warning("%s is 1, but Triton isn't installed: computing with PyTorch's operators.", KERNELS)
        return False
    return True


def uses_cuda_graphs(device_type: str) -> bool:
    """The log says why not, if it was asked for."""
    if device_type != "cuda" or os.environ.get(GRAPHS) != "1":
        return False
    if not uses_triton(device_type):
        log.warning("%s is 1, but has no effect without %s=1.", GRAPHS, KERNELS)
        return False
    return True
