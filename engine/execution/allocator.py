"""How this process allocates memory, configured before PyTorch is imported and threads are started.

A step of a thousand tokens makes hundreds of temporaries of some ten megabytes. By default glibc maps and
unmaps each, and the kernel clears their pages every time: a fifth of a prefill. And a decode step reads all
weights once, a few per cent faster from huge pages.
"""

from __future__ import annotations

import ctypes
import os
import platform

# glibc's mallopt(3): the parameters' numbers, from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_MAPPED_FROM_BYTES = 32 << 20  # the most that glibc allows
_KEPT_BYTES = 1 << 30  # free memory at the top of the heap; beyond it, some is returned

# How many kernels oneDNN's own cache keeps, which has two names, and the cache that PyTorch puts before it.
_KERNEL_CACHES = (
    (("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"), 128),
    (("LRU_CACHE_CAPACITY",), 32),
)


def keep_freed_memory() -> bool:
    """Let the heap keep freed memory for the next step; returns whether that could be configured.

    Call it before threads are started: each would get its own heap, too small for large tensors. Does nothing
    if the C library isn't glibc, or another allocator replaces its own.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = (
        (_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES),
        (_M_TRIM_THRESHOLD, _KEPT_BYTES),
        (_M_ARENA_MAX, 1),
    )
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


def use_huge_pages() -> None:
    """Let PyTorch use huge pages for large tensors on a CPU, unless the operator has set it.

    PyTorch reads this once, at its first allocation. Systems without huge pages ignore it.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_few_kernels() -> None:
    """Limit the kernel caches to the most recently used, unless the operator has set it.

    oneDNN makes a kernel of half a MiB for each shape of a product, in a tenth of a millisecond. By default
    each cache keeps 1024: every prompt length is a shape, and their kernels came to 700 MiB. A step of 2048
    tokens uses about 70, again in every layer; if oneDNN keeps fewer, a prefill takes twice as long.

    Both libraries read this once, when they are first used; without oneDNN it has no effect.
    """
    for names, num_kept in _KERNEL_CACHES:
        if not any(name in os.environ for name in names):
            os.environ[names[0]] = str(num_kept)


def return_freed_memory() -> None:
    """Return the heap's free memory when the engine goes to sleep. Does nothing without glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
