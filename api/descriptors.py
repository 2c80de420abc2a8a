"""File descriptors: as many as the system gives, and connections only as far as they last."""

from __future__ import annotations

import contextlib
import resource

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


def connections_within(descriptors: int, wanted: int) -> int:
    """How many of the `wanted` connections so many descriptors are enough for; at least one."""
    return max(1, min(wanted, (descriptors - _RESERVED) // _PER_CONNECTION))
