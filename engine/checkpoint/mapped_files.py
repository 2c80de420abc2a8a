"""Pages of mapped files that a process has read once and needn't keep. Linux; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

_MADV_DONTNEED = 4  # linux/mman.h


def forget_pages(files: Collection[Path]) -> None:
    """Give back what this process has read of mapped files; who reads there again finds it as before.

    They stay in the system's page cache, but count as this process's no longer. To be called where nobody
    has written to the mappings: what was written there would be lost.
    """
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, stop in _mappings({str(file.resolve()) for file in files}):
        madvise(start, stop - start, _MADV_DONTNEED)  # advice: a refusal costs nothing but memory


def _mappings(paths: Collection[str]) -> Iterator[tuple[int, int]]:
    """Where this process has mapped them, from proc_pid_maps(5); nothing anonymous is among that."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, rest = line.partition(" ")
        fields = rest.split(maxsplit=4)  # permissions, offset, device, inode, path
        if len(fields) == 5 and fields[4] in paths:
            start, _, stop = addresses.partition("-")
            yield int(start, 16), int(stop, 16)
