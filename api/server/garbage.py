"""The garbage collector, told what a server knows: what is built at its start lives as long as it does."""

from __future__ import annotations

import gc

_YOUNG = 10_000  # new objects, until the young ones are looked at; each request in flight holds dozens


def settle() -> None:
    """To be called once the server stands: nothing of it is looked at again, and the rest less often.

    Requests leave nothing for the collector to find; by Python's default it looks at them some hundred times
    a second under load, and at all that there is every few seconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 20)
