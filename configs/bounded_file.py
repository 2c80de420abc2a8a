"""Reads files that people write by hand, up to a size that no one exceeds by hand."""

from __future__ import annotations

import errno
from pathlib import Path

MAX_BYTES = 2**20


def read_bounded(path: Path) -> bytes:
    """The file's content. Raises OSError, also if it is longer than MAX_BYTES."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than the {MAX_BYTES >> 20} MiB that Berth reads", str(path))
    return content
