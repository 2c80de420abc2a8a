"""File descriptors: raises their limit as far as the system allows, and caps connections accordingly."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import resource
import sys
import termios

_RESERVED = 256  # for logs, state, engines' pipes and everything else that is open
_PER_CONNECTION = 2  # the client's, and that to its engine


def raise_descriptor_limit() -> int:
    """Raise the soft limit to the hard limit; returns the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS allows less than its hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return 2**20 if soft == resource.RLIM_INFINITY else soft


def unsent_in_kernel(transport: asyncio.Transport) -> int:
    """Bytes in the kernel's send buffer that the peer has not acknowledged; 0 if unknown.

    The socket becomes writable only when a third of that buffer (megabytes) is free: judged by that alone, a
    slow reader would seem stalled for a minute.
    """
    sock = transport.get_extra_info("socket")
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed meanwhile
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
        return int.from_bytes(answer, sys.byteorder)
    return 0


def connections_within(descriptors: int, wanted: int) -> int:
    """How many of the `wanted` connections this many descriptors can serve; at least one."""
    return max(1, min(wanted, (descriptors - _RESERVED) // _PER_CONNECTION))
