"""Downloads by the real child process from a fake hub (tests/fake_hub.py): tests can't reach the real one."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from instance_manager.errors import InvalidSpec, ShuttingDown
from instance_manager.hub.process import HubProcessDied, Line
from instance_manager.hub.pull import Pulls
from tests.fake_hub import COMMIT, DEMO, WAIT_S, FakeHub, Refusal, running_hub

pytestmark = pytest.mark.timeout(120)

MODEL = "berth/demo"
ROOT = DEMO.parents[1]
STALL_AT = 3 * 2**20
END_WITHIN_S = 2.0


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running_hub() as hub:
        yield hub


@asynccontextmanager
async def pulls_from(hub: FakeHub, home: Path, **env: str) -> AsyncIterator[Pulls]:
    pulls = Pulls({"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(home / "hub"), **env})
    async with pulls.run():
        yield pulls


async def lines_of(pulls: Pulls, model: str = MODEL, revision: str | None = None) -> list[Line]:
    return [line async for line in pulls.follow(model, revision)]


def children() -> list[psutil.Process]:
    """Our child processes that work on the hub's cache."""
    found = []
    for child in psutil.Process().children():
        try:
            if "instance_manager.hub.pull_child" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


async def stalled(hub: FakeHub) -> None:
    assert await asyncio.to_thread(hub.stalled.wait, WAIT_S)


async def no_children() -> float:
    """Seconds until all are gone."""
    began = time.monotonic()
    while children():
        assert time.monotonic() - began < WAIT_S
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def partial_of(home: Path) -> Path:
    weights = (DEMO / "model.safetensors").read_bytes()
    return (
        home / "hub" / "models--berth--demo" / "blobs" / f"{hashlib.sha256(weights).hexdigest()}.incomplete"
    )


def assert_whole(path: Path) -> None:
    assert {file.name for file in path.iterdir()} == {file.name for file in DEMO.iterdir()}
    for file in DEMO.iterdir():
        assert (path / file.name).read_bytes() == file.read_bytes(), file.name


async def test_a_model_is_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    async with pulls_from(hub, tmp_path, HF_TOKEN="hf_secret") as pulls:
        lines = await lines_of(pulls)
        size = sum(file.stat().st_size for file in DEMO.iterdir())
        last = lines[-1]
        assert last["status"] == "success"
        assert (last["model"], last["size_bytes"]) == (MODEL, size)
        assert Path(last["path"]).name == COMMIT
        assert_whole(Path(last["path"]))
        assert not partial_of(tmp_path).exists()

        progress = [line for line in lines if line["status"] == "downloading"]
        assert {line["file"] for line in progress} == {None, *(file.name for file in DEMO.iterdir())}
        assert [line for line in progress if line["file"] is None][-1] == {
            "status": "downloading", "file": None, "completed": size, "total": size
        }  # fmt: skip
        assert "Bearer hf_secret" in hub.tokens

        assert len(hub.downloads("model.safetensors")) == 1
        assert (await lines_of(pulls))[-1] == last
        assert len(hub.downloads("model.safetensors")) == 1  # nothing is downloaded twice


async def test_the_last_listener_ends_the_download_and_it_can_be_resumed(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.stall_at = STALL_AT
    async with pulls_from(hub, tmp_path) as pulls:
        async with aclosing(pulls.follow(MODEL)) as lines:
            async for line in lines:
                if line.get("file") == "model.safetensors" and line["completed"] >= STALL_AT:
                    break
        assert await no_children() < END_WITHIN_S
        assert partial_of(tmp_path).stat().st_size == STALL_AT
        hub.stall_at = None

        again = await lines_of(pulls)
        assert_whole(Path(again[-1]["path"]))
        assert hub.downloads("model.safetensors") == [None, f"bytes={STALL_AT}-"]
        first = next(line for line in again if line.get("file") == "model.safetensors")
        assert first["completed"] == STALL_AT


async def test_a_partial_file_that_does_not_match_is_detected(hub: FakeHub, tmp_path: Path) -> None:
    partial = partial_of(tmp_path)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"\0" * STALL_AT)
    async with pulls_from(hub, tmp_path) as pulls:
        assert (await lines_of(pulls))[-1]["error"]["code"] == "download_corrupt"
        assert not partial.exists()
        assert_whole(Path((await lines_of(pulls))[-1]["path"]))


async def test_a_partial_file_longer_than_the_whole_is_started_over(hub: FakeHub, tmp_path: Path) -> None:
    partial = partial_of(tmp_path)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"\0" * 8 * 2**20)
    async with pulls_from(hub, tmp_path) as pulls:
        assert_whole(Path((await lines_of(pulls))[-1]["path"]))


async def test_two_listeners_share_a_child_until_the_last_has_left(hub: FakeHub, tmp_path: Path) -> None:
    hub.stall_at = STALL_AT
    async with pulls_from(hub, tmp_path) as pulls:
        first, second = pulls.follow(MODEL), pulls.follow(MODEL)
        await anext(first)
        await stalled(hub)
        assert await anext(second) == {"status": "resolving"}  # a late listener gets all of it
        assert len(children()) == 1
        assert pulls.is_pulling(MODEL)

        await first.aclose()
        hub.go_on.set()
        last: Line = {}
        async for line in second:
            last = line
        assert last["status"] == "success"
        assert len(hub.downloads("model.safetensors")) == 1
        await no_children()
        assert not pulls.is_pulling(MODEL)


async def test_a_download_requested_while_the_last_one_ends(hub: FakeHub, tmp_path: Path) -> None:
    hub.stall_at = STALL_AT
    async with pulls_from(hub, tmp_path) as pulls:
        first = pulls.follow(MODEL)
        await anext(first)
        await stalled(hub)
        hub.stall_at = None
        await first.aclose()  # doesn't wait
        assert_whole(Path((await lines_of(pulls))[-1]["path"]))


async def test_a_child_that_dies_is_reported(hub: FakeHub, tmp_path: Path) -> None:
    hub.stall_at = STALL_AT
    async with pulls_from(hub, tmp_path) as pulls:
        waiting = asyncio.create_task(lines_of(pulls))
        await stalled(hub)
        [child] = children()
        child.kill()
        with pytest.raises(HubProcessDied, match="status -9"):
            await waiting


async def test_a_shutdown_is_reported_and_ends_the_child(hub: FakeHub, tmp_path: Path) -> None:
    hub.stall_at = STALL_AT
    async with pulls_from(hub, tmp_path) as pulls:
        waiting = asyncio.create_task(lines_of(pulls))
        await stalled(hub)
        pulls.close()
        with pytest.raises(ShuttingDown):
            await waiting
        with pytest.raises(ShuttingDown):
            await lines_of(pulls)
    assert children() == []


def test_a_child_without_a_reader_exits(hub: FakeHub, tmp_path: Path) -> None:
    """As when Berth is killed and can't end it."""
    hub.stall_at = STALL_AT
    child = subprocess.Popen(
        [sys.executable, "-m", "instance_manager.hub.pull_child", "pull", MODEL],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None and child.stderr is not None
        assert hub.stalled.wait(WAIT_S)
        child.stdout.close()
        hub.go_on.set()
        assert child.wait(WAIT_S) == 1
        assert child.stderr.read() == b""


@pytest.mark.parametrize(
    ("refusal", "code", "words"),
    [
        (Refusal(404, "RepoNotFound"), "model_not_found", "there is no model 'berth/demo'"),
        (Refusal(401, "RepoNotFound"), "model_not_found", "or it is private: then set HF_TOKEN"),
        (Refusal(403, "GatedRepo"), "model_gated", "accept its terms"),
        (Refusal(403), "model_gated", "HF_TOKEN"),
        (Refusal(404, "RevisionNotFound"), "revision_not_found", "no revision 'v9'"),
        (Refusal(400), "hub_failed", "answered 400"),
    ],
)
async def test_refusals_of_the_hub(
    hub: FakeHub, tmp_path: Path, refusal: Refusal, code: str, words: str
) -> None:
    hub.refusal = refusal
    async with pulls_from(hub, tmp_path) as pulls:
        lines = await lines_of(pulls, revision="v9")
    assert [list(line) for line in lines] == [["status"], ["error"]]
    error: dict[str, Any] = lines[-1]["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert words in error["message"]


async def test_no_hub_no_network_no_space_and_no_weights(hub: FakeHub, tmp_path: Path) -> None:
    async with pulls_from(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:1") as pulls:
        assert (await lines_of(pulls))[-1]["error"]["code"] == "hub_unreachable"
    async with pulls_from(hub, tmp_path, HF_HUB_OFFLINE="1") as pulls:
        assert (await lines_of(pulls))[-1]["error"]["code"] == "hub_offline"
    async with pulls_from(hub, tmp_path) as pulls:
        hub.models["berth/empty"] = {"config.json": b"{}", "model.onnx": b"ONNX"}
        assert (await lines_of(pulls, "berth/empty"))[-1]["error"]["code"] == "no_weights"
        hub.claimed_size = 2**60
        error = (await lines_of(pulls))[-1]["error"]
        assert error["code"] == "disk_full"
        assert "1073741824.0 GiB are left to download" in error["message"]
        assert hub.downloads("model.safetensors") == []


def test_a_disk_that_fills_during_the_download() -> None:
    from instance_manager.hub.errors import explained

    error = explained(RuntimeError(), "a/b", None)
    assert error is None
    full = OSError(errno.ENOSPC, "No space left on device", "/x")
    try:
        raise RuntimeError from full
    except RuntimeError as exc:
        error = explained(exc, "a/b", None)
    assert error is not None
    assert error.code == "disk_full"
    error = explained(PermissionError(errno.EACCES, "", "/x"), "a/b", None)
    assert error is not None
    assert "/x: Permission denied" in error.message


async def test_invalid_names_start_nothing(hub: FakeHub, tmp_path: Path) -> None:
    async with pulls_from(hub, tmp_path) as pulls:
        for model, revision in (("../x", None), ("a/b", "--force")):
            with pytest.raises(InvalidSpec):
                await lines_of(pulls, model, revision)
    assert hub.asked == []
