"""A Berth with keys, a model that chats and one that embeds, for all clients."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.berth_process import BerthProcess, running_berth
from tests.clients.clients import KEY

MODELS = {
    "story": {"model": "berth-demo", "aliases": ["gpt-4o-mini"]},
    "vectors": {"model": "berth-demo", "params": {"runner": "pooling"}},
}


@pytest.fixture(scope="session")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    folder = tmp_path_factory.mktemp("clients")
    catalog = folder / "models.yaml"
    catalog.write_text(json.dumps({"models": MODELS}))
    keys = {"API_KEYS": KEY, "ADMIN_API_KEYS": "an-admins-key"}
    with running_berth(folder, MODELS_FILE=str(catalog), **keys) as berth:
        yield berth
