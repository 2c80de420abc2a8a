"""One quantisation of GGUF files is downloaded, and deleted: by real child processes, from a fake hub."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from instance_manager.errors import InvalidSpec, ModelNotFound
from instance_manager.hub.files import check_hub_id, gguf_choice
from instance_manager.hub.process import Line
from instance_manager.hub.pull import Pulls
from instance_manager.hub.removal import ModelInUse, ModelNotOurs, is_among, remove_model
from tests.fake_hub import DEMO, FakeHub, running_hub
from tests.gguf_files import put_gguf, tiny

pytestmark = pytest.mark.timeout(120)

REPOSITORY = "org/Foo-GGUF"
PARTS = ["BF16/Foo-BF16-00001-of-00002.gguf", "BF16/Foo-BF16-00002-of-00002.gguf"]
SEES = ["mmproj-F32.gguf", "mmproj-F16.gguf"]
FILES = ["README.md", "config.json", "imatrix.gguf", "Foo-Q4_K_M.gguf", "Foo-Q8_0.gguf", *PARTS, *SEES]


def content(name: str) -> bytes:
    """Another one for each file."""
    return tiny() + name.encode()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running_hub() as hub:
        hub.models[REPOSITORY] = {name: content(name) for name in FILES}
        yield hub


@asynccontextmanager
async def pulls_from(hub: FakeHub, home: Path) -> AsyncIterator[Pulls]:
    pulls = Pulls({"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(home / "hub")})
    async with pulls.run():
        yield pulls


async def pull(hub: FakeHub, home: Path, model: str) -> list[Line]:
    async with pulls_from(hub, home) as pulls:
        return [line async for line in pulls.follow(model)]


async def remove(model: str, home: Path, in_use: Callable[[str], bool] = lambda _: False, *dirs: Path) -> int:
    env = {"HF_HUB_CACHE": str(home / "hub")}
    return await remove_model(model, env=env, model_dirs=dirs, in_use=in_use)


def snapshot_of(lines: list[Line]) -> Path:
    return next(path for path in Path(lines[-1]["path"]).parents if path.parent.name == "snapshots")


def laid_out(snapshot: Path) -> list[str]:
    return sorted(str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("asked", "taken", "files"),
    [
        (f"{REPOSITORY}:Q8_0", "Q8_0", ["Foo-Q8_0.gguf"]),
        (f"{REPOSITORY}:bf16", "BF16", PARTS),
        (REPOSITORY, "Q4_K_M", ["Foo-Q4_K_M.gguf"]),
    ],
)
async def test_a_pull_takes_the_files_of_one_quantisation_and_says_which(
    asked: str, taken: str, files: list[str], hub: FakeHub, tmp_path: Path
) -> None:
    lines = await pull(hub, tmp_path, asked)
    wanted = [*files, "mmproj-F16.gguf"]
    name = f"{REPOSITORY}:{taken}"
    assert lines[:2] == [
        {"status": "resolving"},
        {"status": "resolving", "model": name, "files": wanted},
    ] or lines[0] == {"status": "resolving", "model": name, "files": wanted}, "a slow listener misses a step"
    last = lines[-1]
    size = sum(len(content(file)) for file in wanted)
    assert {**last, "path": ""} == {"status": "success", "model": name, "path": "", "size_bytes": size}
    snapshot = snapshot_of(lines)
    assert Path(last["path"]) == snapshot / files[0]
    assert laid_out(snapshot) == sorted(wanted), "and nothing else"
    assert {line["file"] for line in lines if line["status"] == "downloading"} == {None, *wanted}
    assert all((snapshot / file).read_bytes() == content(file) for file in wanted)


async def test_what_does_not_exist_is_refused_with_what_does(hub: FakeHub, tmp_path: Path) -> None:
    error = (await pull(hub, tmp_path, f"{REPOSITORY}:Q5_K_M"))[-1]["error"]
    assert (error["code"], error["type"]) == ("quantization_not_found", "not_found_error")
    assert error["message"] == f"{REPOSITORY} has no quantisation Q5_K_M; it has BF16, Q4_K_M, Q8_0"
    error = (await pull(hub, tmp_path, "berth/demo:Q4_K_M"))[-1]["error"]
    assert error["message"].startswith("berth/demo has no GGUF files")
    hub.models["org/nothing"] = {"README.md": b"x", "imatrix.gguf": tiny()}
    assert (await pull(hub, tmp_path, "org/nothing"))[-1]["error"]["code"] == "no_weights"
    assert not any(path.endswith(".gguf") for method, path, _ in hub.asked if method == "GET")


async def test_other_weights_are_preferred_where_no_quantisation_is_named(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.models["org/both"] = {**hub.models["berth/demo"], "both-Q8_0.gguf": content("b")}
    lines = await pull(hub, tmp_path, "org/both")
    assert laid_out(Path(lines[-1]["path"])) == sorted(file.name for file in DEMO.iterdir())
    lines = await pull(hub, tmp_path, "org/both:Q8_0")
    assert lines[-1]["path"].endswith("/both-Q8_0.gguf")


async def test_only_one_quantisation_is_deleted_and_what_others_use_stays(
    hub: FakeHub, tmp_path: Path
) -> None:
    for tag in ("Q4_K_M", "Q8_0", "BF16"):
        snapshot = snapshot_of(await pull(hub, tmp_path, f"{REPOSITORY}:{tag}"))
    same = snapshot / "copy-of-it.bin"  # another file of the repository with the same content
    same.symlink_to((snapshot / "Foo-Q4_K_M.gguf").readlink())

    assert await remove(f"{REPOSITORY}:BF16", tmp_path) == sum(len(content(file)) for file in PARTS)
    assert laid_out(snapshot) == ["Foo-Q4_K_M.gguf", "Foo-Q8_0.gguf", same.name, "mmproj-F16.gguf"]
    assert await remove(f"{REPOSITORY}:q4_k_m", tmp_path) == 0
    assert same.read_bytes() == content("Foo-Q4_K_M.gguf")
    with pytest.raises(ModelNotFound, match="has no quantisation Q4_K_M; it has Q8_0"):
        await remove(f"{REPOSITORY}:Q4_K_M", tmp_path)
    same.unlink()
    blobs = snapshot.parents[1] / "blobs"
    assert await remove(f"{REPOSITORY}:Q8_0", tmp_path) == sum(
        len(content(file)) for file in ("Foo-Q8_0.gguf", "mmproj-F16.gguf", "Foo-Q4_K_M.gguf")
    ), "the last takes the projector and all that is left with it"
    assert not blobs.parent.exists()


async def test_what_is_in_use_or_not_downloaded_stays(hub: FakeHub, tmp_path: Path) -> None:
    name = f"{REPOSITORY}:Q8_0"
    path = (await pull(hub, tmp_path, name))[-1]["path"]
    with pytest.raises(ModelInUse, match=f"berth stop {name}"):
        await remove(name, tmp_path, lambda model: model == name)
    own = put_gguf(tmp_path / "models", "mine-Q8_0.gguf")
    for model in ("mine:Q8_0", "mine"):
        with pytest.raises(ModelNotOurs, match="delete it yourself"):
            await remove(model, tmp_path, lambda _: False, own)
    assert Path(path).exists()


def test_a_file_that_an_engine_has_loaded_is_in_use() -> None:
    paths = ["/c/hub/models--org--Foo-GGUF/snapshots/c0ffee/Foo-Q8_0.gguf", "org/other"]
    assert is_among(paths, "org/Foo-GGUF:Q8_0") and is_among(paths, "org/Foo-GGUF")
    assert not is_among(paths, "org/Foo-GGUF:Q4_K_M") and not is_among(paths, "org/Foo")


def test_ids_may_end_with_a_quantisation() -> None:
    for model in ("org/m:Q4_K_M", "m:q8_0", "org/m:UD-Q2_K_XL"):
        check_hub_id(model)
    for model in ("org/m:latest", "org/m:", ":Q4_K_M", "../m:Q4_K_M", "org/m:Q4_K_M:Q4_K_M", "a--b:Q8_0"):
        with pytest.raises(InvalidSpec):
            check_hub_id(model)


@pytest.mark.parametrize(
    ("names", "tag", "expected"),
    [
        (["a-Q2_K.gguf", "a-IQ1_S.gguf"], None, ("a-IQ1_S.gguf",)),
        (["a.gguf"], None, ("a.gguf",)),
        (["a-Q8_0-00002-of-00002.gguf"], None, None),
        (["a-UD-Q4_K_XL.gguf"], "Q4_K_XL", ("a-UD-Q4_K_XL.gguf",)),
        (["draft-Q8_0.gguf", "m-Q8_0.gguf", "mmproj-draft-F16.gguf"], "Q8_0", ("m-Q8_0.gguf",)),
    ],
)
def test_files_are_chosen_by_their_names(names: list[str], tag: Any, expected: Any) -> None:
    choice = gguf_choice("org/m-GGUF", names, tag)
    assert (choice and choice.files) == expected, json.dumps(names)
