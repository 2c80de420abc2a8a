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


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
