"""The protocol between the engine and the compiler's processes: JSON first, then small records."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

MAX_SEQUENCES = 512  # per grammar at a time; each has a row of the masks, which are in shared memory

LENGTH = struct.Struct("<I")  # before a frame
COMMAND = struct.Struct("<cQ")  # to the fork server: command, number of the child
REQUEST = struct.Struct("<iiii")  # to a grammar's process: kind, row, request number, token
REPLY = struct.Struct("<iiiI")  # request number, status, whether the grammar has ended, bytes of text
FINAL_REPLY = 0  # the number of a reply to all requests: its text says why the process ends now

MAX_EXTRA_BYTES = 512 * 2**20  # address space that a grammar's process may use beyond the fork server's
COMPILE_S = 10  # of processor time, like the next two
MASK_S = 0.5  # for one mask
SLOW_MASKS_S = 5  # for all slow masks of one sequence

SPAWN, KILL = b"S", b"K"


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one grammar: processor time, which its process checks, except for the last."""

    compile_s: float = COMPILE_S
    mask_s: float = MASK_S
    slow_masks_s: float = SLOW_MASKS_S
    wall_s: float = 30.0  # to compile, or for one mask, if the processors are busy or the process is stopped


def too_large(work: str) -> str:
    return f"takes more than {MAX_EXTRA_BYTES >> 20} MiB of memory to {work}: simplify it."


def too_slow(why: str) -> str:
    return (
        f"The grammar takes too long to follow: {why}. Simplify it: nested counts and ambiguous parts cost "
        "most."
    )


class RequestKind(IntEnum):
    OPEN = 0  # a sequence begins
    TOKEN = 1  # the sequence has a new token
    CLOSE = 2  # the sequence has ended; there is no reply


class MaskStatus(IntEnum):
    RESTRICTED = 0  # the mask has the allowed tokens
    ANYTHING = 1  # all tokens are allowed; the mask was not written
    FAILED = 2  # the text has the reason
    REFUSED = 3  # likewise, and the grammar is at fault


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
