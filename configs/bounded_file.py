"""Files that people write by hand, read whole: no more of them than anybody writes by hand."""

from __future__ import annotations

import errno
from pathlib import Path

MAX_BYTES = 2**20


def read_bounded(path: Path) -> bytes:
    """The file's content. Raises OSError, also where it is longer than MAX_BYTES."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than the {MAX_BYTES >> 20} MiB that are read", str(path))
    return content
