"""Tunes the garbage collector for a server, whose start-up objects live as long as the process."""

from __future__ import annotations

import gc

_YOUNG = 10_000  # new objects per collection of the youngest generation; each request in flight holds dozens


def settle() -> None:
    """Call once the server is up: exempts everything built so far, and collects the rest less often.

    Requests create no cycles; with Python's defaults the collector would run some hundred times a second
    under load, and over all objects every few seconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 20)
