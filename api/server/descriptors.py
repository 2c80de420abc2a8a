"""File descriptors: as many as the system gives, and connections only as far as they last."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import resource
import sys
import termios

_RESERVED = 256  # for logs, state, engines' own, and what else is open
_PER_CONNECTION = 2  # the client's, and the engine's that serves it


def raise_descriptor_limit() -> int:
    """Ask for as many descriptors as the hard limit allows; how many there are now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS gives less than its hard limit says
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return 2**20 if soft == resource.RLIM_INFINITY else soft


def unsent_in_kernel(transport: asyncio.Transport) -> int:
    """Bytes that were written to a connection and that its other side has not taken; 0 where nobody tells.

    The kernel lets more be written only when a third of its megabytes is free: who looks at that alone sees a
    slow reader stand still for a minute.
    """
    sock = transport.get_extra_info("socket")
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed meanwhile
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
        return int.from_bytes(answer, sys.byteorder)
    return 0


def connections_within(descriptors: int, wanted: int) -> int:
    """How many of the `wanted` connections so many descriptors are enough for; at least one."""
    return max(1, min(wanted, (descriptors - _RESERVED) // _PER_CONNECTION))
