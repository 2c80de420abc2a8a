"""Deleting models from the hub's cache, and nothing else. Real files and the real child process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from instance_manager.errors import InvalidSpec, ModelNotFound
from instance_manager.hub.pull import Pulls
from instance_manager.hub.removal import ModelInUse, ModelNotOurs, remove_model
from tests.fake_hub import DEMO, running_hub

pytestmark = pytest.mark.timeout(120)

MODEL = "berth/demo"


async def remove(model: str, home: Path, in_use: Callable[[str], bool] = lambda _: False, *dirs: Path) -> int:
    return await remove_model(model, env={"HF_HUB_CACHE": str(home)}, model_dirs=dirs, in_use=in_use)


async def test_a_downloaded_model_is_deleted_with_all_its_files(tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    with running_hub() as hub:
        pulls = Pulls({"HF_HUB_CACHE": str(cache), "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)})
        async with pulls.run():
            async for line in pulls.follow(MODEL):
                last = line
    assert last["status"] == "success"
    left_over = cache / "models--berth--demo" / "blobs" / "abc.incomplete"
    left_over.write_bytes(b"x" * 1000)

    with pytest.raises(ModelInUse, match="berth stop berth/demo"):
        await remove(MODEL, cache, lambda model: model == MODEL)
    assert (cache / "models--berth--demo").exists()

    size = sum(file.stat().st_size for file in DEMO.iterdir())
    assert await remove(MODEL, cache) == size + 1000
    assert not (cache / "models--berth--demo").exists()
    with pytest.raises(ModelNotFound, match="is not in the cache"):
        await remove(MODEL, cache)


async def test_a_partial_download_is_deleted(tmp_path: Path) -> None:
    blobs = tmp_path / "models--berth--demo" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc.incomplete").write_bytes(b"x" * 1000)
    (blobs / "whole").write_bytes(b"x" * 500)
    assert await remove(MODEL, tmp_path) == 1500
    assert not blobs.parent.exists()


async def test_folders_of_the_user_are_never_touched(tmp_path: Path) -> None:
    own = tmp_path / "models" / "berth" / "demo"
    await asyncio.to_thread(own.mkdir, parents=True)
    (own / "config.json").write_text("{}")
    for name, dirs in ((MODEL, (tmp_path / "models",)), (str(own), ())):
        with pytest.raises(ModelNotOurs, match="delete it yourself"):
            await remove(name, tmp_path / "hub", lambda _: False, *dirs)
    assert (own / "config.json").exists()


@pytest.mark.parametrize(
    ("name", "error"), [("../hub", ModelNotFound), ("a/../b", ModelNotFound), ("a--b", InvalidSpec)]
)
async def test_names_of_other_places_are_refused(tmp_path: Path, name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await remove(name, tmp_path)
