"""A Berth with keys for all clients: a model that chats, one that embeds, an engine that has chats alone."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.berth_process import BerthProcess, free_port, running_berth
from tests.chat_engine import command
from tests.clients.clients import KEY

CHATS_ALONE = "chats-alone"  # an engine that has chat completions and no other API
MODELS = {
    "story": {"model": "berth-demo", "aliases": ["gpt-4o-mini"]},
    "vectors": {"model": "berth-demo", "params": {"runner": "pooling"}},
}


@pytest.fixture(scope="session")
def berth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BerthProcess]:
    folder = tmp_path_factory.mktemp("clients")
    catalog = folder / "models.yaml"
    port = free_port()
    chats = command("--target", f"http://127.0.0.1:{port}", "--as", "story")
    chats_alone = {"command": chats, "env": {"TARGET_KEY": KEY}}
    catalog.write_text(json.dumps({"models": MODELS | {CHATS_ALONE: chats_alone}}))
    keys = {"API_KEYS": KEY, "ADMIN_API_KEYS": "an-admins-key"}
    with running_berth(folder, MODELS_FILE=str(catalog), APP_PORT=str(port), **keys) as berth:
        yield berth
