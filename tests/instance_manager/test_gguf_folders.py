"""GGUF models by name or path, as starts and estimates look them up."""

from __future__ import annotations

from pathlib import Path

import pytest

from instance_manager.backends.model_paths import find_model
from instance_manager.errors import ModelNotFound
from instance_manager.gguf.folders import find_below, find_in_cache, model_at
from tests.gguf_files import of_type, put_gguf, put_split


def put_snapshot(cache: Path, commit: str, *names: str) -> Path:
    return put_gguf(cache / "models--org--Foo-GGUF" / "snapshots" / commit, *names)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("Foo", "Foo-Q4_K_M.gguf"),
        ("Foo:Q8_0", "Foo-Q8_0.gguf"),
        ("Foo:q8_0", "Foo-Q8_0.gguf"),
        ("pub/bar", "pub/bar/x-Q8_0.gguf"),
        ("pub/bar:Q2_K", "pub/bar/Q2_K/x-Q2_K.gguf"),
        ("all/a", "all/a-Q8_0.gguf"),
        ("all/b:Q8_0", "all/b-Q8_0.gguf"),
    ],
)
def test_names_lead_to_the_files_that_a_scan_lists_under_them(tmp_path: Path, name: str, file: str) -> None:
    put_gguf(tmp_path, "Foo-Q4_K_M.gguf", "Foo-Q8_0.gguf", "Other.gguf")
    put_gguf(tmp_path / "pub" / "bar", "x-Q8_0.gguf", "Q2_K/x-Q2_K.gguf")
    put_gguf(tmp_path / "all", "a-Q8_0.gguf", "b-Q8_0.gguf")
    assert find_model(name, [tmp_path]) == str(tmp_path / file)


@pytest.mark.parametrize(
    "name", ["a\0b:Q8_0", "a\0b", "\ud800:Q8_0", "../x:Q8_0", "a/../../x:Q8_0", "x" * 5000]
)
def test_odd_names_are_not_found(tmp_path: Path, name: str) -> None:
    root = tmp_path / "models"
    put_gguf(root, "Foo-Q8_0.gguf")
    put_gguf(tmp_path, "x-Q8_0.gguf")
    assert find_below(root, name) is None
    assert find_in_cache(root, name) is None
    with pytest.raises(ModelNotFound):
        find_model(name, [root], root)


def test_a_quantisation_that_is_not_here_may_be_on_the_hub(tmp_path: Path) -> None:
    put_gguf(tmp_path, "Foo-Q8_0.gguf")
    assert find_model("org/Foo:Q4_K_M", [tmp_path], tmp_path) == "org/Foo:Q4_K_M"


def test_the_main_branch_of_the_cache_comes_first(tmp_path: Path) -> None:
    old = put_snapshot(tmp_path, "aaa", "Foo-Q8_0.gguf", "Foo-Q4_K_M.gguf")
    new = put_snapshot(tmp_path, "bbb", "Foo-Q8_0.gguf")
    refs = tmp_path / "models--org--Foo-GGUF" / "refs"
    refs.mkdir()
    for main, eight in (("bbb", new), ("aaa", old)):
        (refs / "main").write_text(main)
        assert find_model("org/Foo-GGUF:Q8_0", [], tmp_path) == str(eight / "Foo-Q8_0.gguf")
        assert find_model("org/Foo-GGUF", [], tmp_path) == str(old / "Foo-Q4_K_M.gguf")
    (refs / "main").write_bytes(b"\xff")
    assert find_in_cache(tmp_path, "org/Foo-GGUF:Q8_0") is not None


def test_any_part_leads_to_its_model(tmp_path: Path) -> None:
    put_split(tmp_path, "m-Q8_0", 3)
    put_gguf(tmp_path, "mmproj-F16.gguf")
    found = model_at(tmp_path / "m-Q8_0-00002-of-00003.gguf")
    assert found is not None
    assert [path.name for path in found.paths] == [f"m-Q8_0-{n:05}-of-00003.gguf" for n in (1, 2, 3)]
    assert found.projector == tmp_path / "mmproj-F16.gguf"
    put_gguf(tmp_path, "lora.gguf", content=of_type("adapter"))
    assert model_at(tmp_path / "lora.gguf") is None
    assert model_at(tmp_path / "mmproj-F16.gguf") is None
