"""What all tests share: the event loop they run on."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator

import pytest

# Engines of several tests run at once: each with a thread for every core, they would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The GPU's kernels are tested on any machine, by Triton's interpreter; Triton reads this when it is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A runner in the background has it ignored, and all that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """All that it makes lives to the end: to look through it for garbage, again and again, is in vain."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: at the end, one of them would keep a worker busy alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)
    unseen = {item.path for item in items if item.get_closest_marker("exhaustive") is not None}
    for path in unseen:
        if "mark.exhaustive" not in path.read_text():
            raise pytest.UsageError(f"{path} lacks `mark.exhaustive`, by which such files are found")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
