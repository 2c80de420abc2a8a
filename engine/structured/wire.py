"""What the engine and the compiler's processes say to each other: JSON first, then small records."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

MAX_SEQUENCES = 512  # that follow one grammar at a time; each has a row of the masks, which are shared memory

LENGTH = struct.Struct("<I")  # before a frame
COMMAND = struct.Struct("<cQ")  # to the first process: what, and of which of its children
ASK = struct.Struct("<iiii")  # to a grammar's process: what, row, number of the question, token
ANSWER = struct.Struct("<iiiI")  # number, what, whether the grammar has ended, bytes of text
FAREWELL = 0  # the number of an answer to all: its text says why the process ends now

MAX_EXTRA_BYTES = 512 * 2**20  # of address space, that a grammar's process takes beside what all have
COMPILE_S = 10  # of processor time, as the next two
MASK_S = 0.5  # for what may come next, after one token
SLOW_MASKS_S = 5  # for one sequence's masks that take long, together

SPAWN, KILL = b"S", b"K"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of what one grammar may take: processor time, which its process looks at, but for the last."""

    compile_s: float = COMPILE_S
    mask_s: float = MASK_S
    slow_masks_s: float = SLOW_MASKS_S
    wall_s: float = (
        30.0  # to compile, or for one mask, where the processors are busy or the process is stopped
    )


def too_large(work: str) -> str:
    return f"takes more than {MAX_EXTRA_BYTES >> 20} MiB of memory to {work}: simplify it."


def too_slow(what: str) -> str:
    return (
        f"The grammar takes too long to follow: {what}. Simplify it: counts within counts, and parts that "
        "can be read in many ways, cost most."
    )


class Ask(IntEnum):
    OPEN = 0  # a sequence begins
    TOKEN = 1  # it takes a token
    CLOSE = 2  # it has ended; not answered


class Answer(IntEnum):
    RESTRICTED = 0  # the mask says what may come next
    ANYTHING = 1  # all may; the mask was not written
    FAILED = 2  # the text that follows says why
    REFUSED = 3  # so it does, and it is the grammar's doing


def pack(value: Any) -> bytes:
    data = json.dumps(value).encode()
    return LENGTH.pack(len(data)) + data


def read_frame(link: socket.socket) -> bytes:
    """Blocks. Raises EOFError."""
    (length,) = LENGTH.unpack(_read(link, LENGTH.size))
    return _read(link, length)


def _read(link: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += link.recv(size - len(data)) or _end()
    return bytes(data)


def _end() -> bytes:
    raise EOFError
