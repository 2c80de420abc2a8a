"""Clean-up that belongs to the process which made what is cleaned up. Knows nothing of torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any


def only_here(function: Callable[..., Any]) -> Callable[..., None]:
    """Does nothing in a fork, which has copies of objects, but neither their threads nor their children."""
    owner = os.getpid()

    @wraps(function)
    def unless_forked(*args: Any) -> None:
        if os.getpid() == owner:
            function(*args)

    return unless_forked
