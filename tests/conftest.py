"""What all tests share: the event loop they run on."""

from __future__ import annotations

import signal

import pytest

# A runner in the background has it ignored, and all that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
