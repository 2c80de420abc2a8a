"""What all tests share: the event loop they run on."""

from __future__ import annotations

import os
import signal

import pytest

# Engines of several tests run at once: each with a thread for every core, they would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The GPU's kernels are tested on any machine, by Triton's interpreter; Triton reads this when it is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A runner in the background has it ignored, and all that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: at the end, one of them would keep a worker busy alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
