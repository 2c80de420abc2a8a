"""Headers of files as they are now, read again only where a file has changed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from instance_manager.gguf.errors import GgufError
from instance_manager.gguf.header import GgufHeader, read_header

_THREADS = 8
_MAX_BEGINNINGS = 8192  # of files, kept
_MAX_HEADERS = 256


def header_at(path: Path, *, whole: bool = False) -> GgufHeader | GgufError:
    """`whole`: with the values that lie after the vocabulary, and the tensors. Blocks: opens a file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        return GgufError(f"can't be read: {getattr(error, 'strerror', None) or error}")
    return (_whole if whole else _beginning)(path, found.st_mtime_ns, found.st_size)


def read_beginnings(paths: Iterable[Path]) -> None:
    """Of files whose headers will be asked for: several at a time."""
    paths = list(paths)
    if len(paths) > _THREADS:
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="gguf") as pool:
            list(pool.map(header_at, paths))


@lru_cache(_MAX_BEGINNINGS)
def _beginning(path: Path, mtime_ns: int, size: int) -> GgufHeader | GgufError:
    return _read(path, whole=False)


@lru_cache(_MAX_HEADERS)
def _whole(path: Path, mtime_ns: int, size: int) -> GgufHeader | GgufError:
    return _read(path, whole=True)


def _read(path: Path, *, whole: bool) -> GgufHeader | GgufError:
    try:
        return read_header(path, whole=whole)
    except GgufError as error:
        return error
