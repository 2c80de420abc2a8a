"""The tests of HTTP once more, with the fast path switched off: the server behaves the same by ASGI alone.

Those of streams and slow clients are left out, as such requests never take the fast path to their end.
"""

from __future__ import annotations

from typing import Any

import pytest

from api.proxy.proxy import DataPlane
from tests.api import upstreams
from tests.api.test_proxy_bodies import *  # noqa: F403
from tests.api.test_proxy_failures import *  # noqa: F403
from tests.api.test_proxy_forwarding import *  # noqa: F403


@pytest.fixture  # type: ignore[no-redef]  # in place of the imported one
def anyio_backend() -> Any:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(autouse=True)
def _without_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: Any) -> bool:
        raise AssertionError("the fast path is switched off")

    monkeypatch.setattr(upstreams, "HAS_FAST_PATH", False)
    monkeypatch.setattr(DataPlane, "begin", begin)
