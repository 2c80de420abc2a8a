"""How this process gets its memory, set before PyTorch and threads are there.

A step of a thousand tokens makes temporaries of some ten megabytes by the hundred. By default glibc maps and
unmaps each, and the kernel clears their pages every time: a fifth of a prefill. And a decode step reads all
weights once: from huge pages a few per cent faster.
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
_KEPT_BYTES = 1 << 30  # free memory at the top of the heap beyond which some is returned

# oneDNN's own cache, which goes by two names, and the one that PyTorch has in front of it: how many are kept.
_KERNEL_CACHES = (
    (("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY"), 128),
    (("LRU_CACHE_CAPACITY",), 32),
)


def keep_freed_memory() -> bool:
    """Let the heap keep what is freed, for the next step; returns whether that could be set.

    To be called before threads are started: each would get a heap of its own, too small for large tensors.
    Does nothing where the C library isn't glibc, or another allocator stands in its place.
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
    """Let PyTorch ask for huge pages for large tensors on a CPU, unless the operator has decided it.

    PyTorch reads this once, at its first allocation. Systems without huge pages ignore it.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_few_kernels() -> None:
    """Let oneDNN forget the kernels that were used longest ago, unless the operator has decided it.

    It makes one for each shape of a product, half a MiB large, in a tenth of a millisecond, and each keeps
    1024: every length of a prompt is a shape, and their kernels came to 700 MiB. A step of 2048 tokens uses
    about 70, in every layer again; where oneDNN keeps fewer than that, a prefill takes twice its time.

    Both libraries read this once, when they are first used; without oneDNN it is nobody's business.
    """
    for names, num_kept in _KERNEL_CACHES:
        if not any(name in os.environ for name in names):
            os.environ[names[0]] = str(num_kept)


def return_freed_memory() -> None:
    """Give back what the heap keeps; for when the engine goes to sleep. Does nothing without glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
