"""Releases pages of mapped files that a process has read once and need not keep. Linux only."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

_MADV_DONTNEED = 4  # linux/mman.h


def forget_pages(files: Collection[Path]) -> None:
    """Release the pages that this process has read of mapped files; reading them again works as before.

    They stay in the system's page cache, but no longer count as this process's memory. Call it only if
    nothing has written to the mappings: such changes would be lost.
    """
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, stop in _mappings({str(file.resolve()) for file in files}):
        madvise(start, stop - start, _MADV_DONTNEED)  # only advice: if refused, the memory stays in use


def _mappings(paths: Collection[str]) -> Iterator[tuple[int, int]]:
    """The address ranges where this process has mapped them, from proc_pid_maps(5); no anonymous memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, rest = line.partition(" ")
        fields = rest.split(maxsplit=4)  # permissions, offset, device, inode, path
        if len(fields) == 5 and fields[4] in paths:
            start, _, stop = addresses.partition("-")
            yield int(start, 16), int(stop, 16)
