"""Models on disk: complete models are found, and other files beside them do no harm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from composition.gguf_discovery import find_gguf
from composition.start_check import check
from configs.discovery import FoundModel, scan_models
from configs.settings_reader import read_settings


def put(folder: Path, *files: str) -> Path:
    """A folder with files of ten bytes each."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file).write_bytes(b"x" * 10)
    return folder


def put_cached(home: Path, name: str, *files: str, commit: str = "c0ffee", ref: str | None = None) -> Path:
    """A repository in the hub's cache, as its client lays it out: blobs, and links to them."""
    repo = home / "hub" / f"models--{name.replace('/', '--')}"
    put(repo / "blobs", *(f"blob-{file}" for file in files))
    snapshot = put(repo / "snapshots" / commit)
    for file in files:
        (snapshot / file).symlink_to(f"../../blobs/blob-{file}")
    (put(repo / "refs") / "main").write_text(ref or commit)
    return snapshot


def find(*model_dirs: Path, home: Path | None = None) -> dict[str, FoundModel]:
    cache = (home or Path("/none")) / "hub"
    return {model.name: model for model in scan_models(model_dirs, cache, find_gguf).models}


WHOLE = [
    ("model.safetensors",),
    ("pytorch_model.bin", "training_args.bin"),
    ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
    ("model.safetensors", "pytorch_model-00001-of-00002.bin"),  # one of two sets of weights is complete
]
PARTS = [
    (),
    ("training_args.bin",),
    ("model.safetensors.index.json",),
    ("model-00001-of-00002.safetensors", "model.safetensors.index.json"),
    ("model-00001-of-00002.safetensors", "model-00003-of-00002.safetensors"),
]


@pytest.mark.parametrize("cached", [False, True])
def test_complete_models_are_found_and_incomplete_ones_are_not(tmp_path: Path, cached: bool) -> None:
    for number, files in enumerate([*WHOLE, *PARTS]):
        if cached:
            put_cached(tmp_path, f"o/m{number}", "config.json", *files)
        else:
            put(tmp_path / "o" / f"m{number}", "config.json", *files)
    put(tmp_path / "o" / "no-config", "model.safetensors")
    found = find(home=tmp_path) if cached else find(tmp_path)
    assert sorted(found) == [f"o/m{number}" for number in range(len(WHOLE))]
    assert found["o/m0"].size_bytes == 20


def test_other_formats_are_found_in_folders_but_not_in_the_cache(tmp_path: Path) -> None:
    kinds = {
        "adapter": ("adapter_config.json", "adapter_model.safetensors"),
        "diffusion": ("model_index.json",),
    }
    for name, files in kinds.items():
        put(tmp_path / "one" / name, *files)
        put(tmp_path / "two" / "o" / name, *files)
        put_cached(tmp_path, f"c/{name}", *files)
    put(tmp_path / "one" / "diffusion" / "unet", "config.json", "model.safetensors")  # a part of it
    found = find(tmp_path / "one", tmp_path / "two", home=tmp_path)
    assert sorted(found) == sorted([*kinds, *(f"o/{name}" for name in kinds)])


def test_names_have_at_most_two_parts(tmp_path: Path) -> None:
    for name in ("one", "org/two", "a/b/three", ".hidden", "org/.hidden", "one/inner"):
        put(tmp_path / name, "config.json", "model.safetensors")
    put(tmp_path / "line\nend", "config.json", "model.safetensors")
    assert sorted(find(tmp_path)) == ["one", "org/two"]


def test_times_and_paths_are_reported(tmp_path: Path) -> None:
    folder = put(tmp_path / "one", "config.json", "model.safetensors")
    os.utime(folder / "config.json", (1_000, 1_000))
    os.utime(folder / "model.safetensors", (2_000, 2_000))
    assert find(tmp_path)["one"] == FoundModel("one", folder, 20, 2_000.0)


def test_the_first_model_with_a_name_wins_and_the_cache_comes_last(tmp_path: Path) -> None:
    for root in ("a", "b"):
        put(tmp_path / root / "o" / "m", "config.json", "model.safetensors")
    put_cached(tmp_path, "o/m", "config.json", "model.safetensors")
    cached = put_cached(tmp_path, "gpt2", "config.json", "model.safetensors")
    found = find(tmp_path / "a", tmp_path / "b", home=tmp_path)
    assert found["o/m"].path == tmp_path / "a" / "o" / "m"
    assert found["gpt2"].path == cached


def test_links_to_outside_the_folder_are_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "models", put(tmp_path / "models-not", "config.json", "model.safetensors")
    inside = put(root / "inside", "config.json", "model.safetensors")
    (root / "link-out").symlink_to(outside)
    (root / "link-in").symlink_to(inside)
    (root / "loop").symlink_to(root / "loop")
    weights_out = put(root / "weights-out", "config.json")
    (weights_out / "model.safetensors").symlink_to(outside / "model.safetensors")
    snapshot = put_cached(tmp_path, "o/out", "config.json", "model.safetensors")
    (snapshot / "tokenizer.json").symlink_to(outside / "config.json")
    assert sorted(find(root, home=tmp_path)) == ["inside", "link-in"]


def test_a_model_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    put(tmp_path / "real" / "one", "config.json", "model.safetensors")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert list(find(tmp_path / "link")) == ["one"]


def test_the_cache_is_read_at_the_main_branch(tmp_path: Path) -> None:
    files = ("config.json", "model.safetensors")
    put_cached(tmp_path, "o/old", *files, commit="aaa")
    new = put_cached(tmp_path, "o/old", *files, commit="bbb")
    put_cached(tmp_path, "o/gone", *files, commit="aaa", ref="bbb")
    put_cached(tmp_path, "o/away", *files, ref="../../../elsewhere")
    (
        put_cached(tmp_path, "o/broken", *files, "tokenizer.json").parents[1] / "blobs/blob-tokenizer.json"
    ).unlink()
    (put_cached(tmp_path, "o/no-ref", *files).parents[1] / "refs" / "main").unlink()
    (put_cached(tmp_path, "o/bytes", *files).parents[1] / "refs" / "main").write_bytes(b"\xff\xfe")
    put(tmp_path / "hub" / "datasets--o--d", "config.json", "model.safetensors")
    assert {name: model.path for name, model in find(home=tmp_path).items()} == {"o/old": new}


def test_a_model_folder_may_be_a_hub_cache(tmp_path: Path) -> None:
    snapshot = put_cached(tmp_path, "o/cached", "config.json", "model.safetensors")
    put(tmp_path / "hub" / "beside", "config.json", "model.safetensors")
    found = find(tmp_path / "hub")
    assert {name: model.path for name, model in found.items()} == {
        "beside": tmp_path / "hub" / "beside",
        "o/cached": snapshot,
    }


def test_unreadable_files_are_skipped(tmp_path: Path) -> None:
    put(tmp_path / "one", "config.json", "model.safetensors")
    closed = put(tmp_path / "closed", "config.json", "model.safetensors")
    closed.chmod(0)
    try:
        may_read = os.access(closed, os.R_OK)  # root may
        found = find(tmp_path, tmp_path / "one" / "config.json", tmp_path / "nowhere")
    finally:
        closed.chmod(0o700)
    assert sorted(found) == (["closed", "one"] if may_read else ["one"])


def remarks(*model_dirs: Path) -> list[str]:
    return [
        remark.text.removeprefix("MODEL_DIRS: ")
        for remark in scan_models(model_dirs, Path("/none"), find_gguf).remarks
    ]


def whole(folder: Path) -> Path:
    """A complete model, which causes no remark."""
    put(folder, "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    file = whole(tmp_path / "real" / "one") / "config.json"
    assert remarks(tmp_path / "nowhere", file, tmp_path / "real") == [
        f"{tmp_path}/nowhere: there is no such folder",
        f"{file}: isn't a folder",
    ]


def test_a_folder_without_models_is_reported(tmp_path: Path) -> None:
    put(tmp_path / "notes", "readme.txt")
    assert remarks(tmp_path) == [f"{tmp_path}: contains no models"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("model.safetensors",), "has no config.json"),
        (("config.json",), "has no weights"),
        (("config.json", "training_args.bin"), "has no weights"),
        (("config.json", "model-00001-of-00002.safetensors"), "lacks some shards"),
    ],
)
@pytest.mark.parametrize("name", ["one", "owner/one"])
def test_an_incomplete_model_is_reported(
    tmp_path: Path, name: str, files: tuple[str, ...], expected: str
) -> None:
    put(tmp_path / name, *files)
    [line] = remarks(tmp_path)
    assert line.startswith(f"{tmp_path}/{name}: looks like a model, but ")
    assert expected in line


@pytest.mark.parametrize(
    ("config", "expected"),
    [("{", "isn't valid JSON"), ("[]", "isn't a JSON object"), ("", "isn't valid JSON")],
)
def test_an_invalid_config_is_reported(tmp_path: Path, config: str, expected: str) -> None:
    (whole(tmp_path / "one") / "config.json").write_text(config)
    [line] = remarks(tmp_path)
    assert line.startswith(f"{tmp_path}/one: its config.json {expected}")
    assert list(find(tmp_path)) == ["one"]  # the engine reports it at the start


def test_broken_links_and_links_to_outside_are_reported_with_their_target(tmp_path: Path) -> None:
    root, outside = tmp_path / "models", whole(tmp_path / "elsewhere" / "big")
    whole(root / "inside")
    (root / "out").symlink_to(outside)
    (root / "team").mkdir()
    (root / "team" / "big").symlink_to(outside)
    (root / "gone").symlink_to(root / "nothing")
    put(root / "weights-out", "config.json")
    (root / "weights-out" / "model.safetensors").symlink_to(outside / "model.safetensors")
    put(root / "weights-gone", "config.json")
    (root / "weights-gone" / "model.safetensors").symlink_to("nothing")
    leads_out = f"is a link that leads out of {root}, to {outside}"
    reported = remarks(root)
    assert len(reported) == 5
    for line in (
        f"{root}/out: {leads_out}, so it isn't followed",
        f"{root}/team/big: {leads_out}, so it isn't followed",
        f"{root}/gone: is a broken link",
        f"{root}/weights-out: looks like a model, but model.safetensors {leads_out}/model.safetensors",
        f"{root}/weights-gone: looks like a model, but model.safetensors is a broken link",
    ):
        assert [remark for remark in reported if remark.startswith(line)], (line, reported)


def test_a_folder_that_is_itself_a_model_is_reported(tmp_path: Path) -> None:
    assert "is a model itself" in remarks(whole(tmp_path / "one"))[0]
    assert "a file of a model" in remarks(put(tmp_path / "files", "model.safetensors"))[0]


def test_a_name_that_occurs_in_two_folders_is_reported(tmp_path: Path) -> None:
    first, second = whole(tmp_path / "a" / "m"), whole(tmp_path / "b" / "m")
    assert remarks(tmp_path / "a", tmp_path / "b") == [f"{second}: m is already {first}"]


def test_complete_models_cause_no_remarks(tmp_path: Path) -> None:
    whole(tmp_path / "one")
    whole(tmp_path / "owner" / "two")
    put(tmp_path / "owner", "README.md")
    put(tmp_path / "one", "tokenizer.json", "training_args.bin")
    assert remarks(tmp_path) == []


@pytest.mark.parametrize(
    ("line", "folder"),
    [("HF_HUB_CACHE={}/hub", "hub"), ("XDG_CACHE_HOME={}", "huggingface/hub"), ("HF_HOME={}", "hub")],
)
def test_a_cache_named_in_env_is_searched(
    line: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines get these variables from there, too."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODEL_DIRS", str(tmp_path / "none"))
    put_cached((tmp_path / folder).parent, "o/cached", "model.safetensors", "config.json")
    (tmp_path / ".env").write_text(line.format(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert check(read_settings(Path(".env"))).num_models == 1


def test_a_model_of_the_catalog_that_its_engine_cannot_run_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that only lies in a folder may be meant for another program."""
    for name in ("named", "found"):
        folder = put(tmp_path / "models" / name, "model.safetensors")
        (folder / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    (tmp_path / "models.yaml").write_text("models: {pictures: {model: named}}")
    (tmp_path / ".env").write_text(f"MODEL_DIRS={tmp_path}/models\nMODELS_FILE={tmp_path}/models.yaml\n")
    monkeypatch.chdir(tmp_path)
    report = check(read_settings(Path(".env")))
    (line,) = (line for line in (*report.mistakes, *report.warnings) if "can't be started" in line)
    assert line.startswith("model pictures can't be started: Architecture 'ViTForImageClassification'")
    assert line in report.mistakes
