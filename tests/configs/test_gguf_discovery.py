"""GGUF models on disk: each quantisation is a model, under a name that stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from composition.gguf_discovery import find_gguf, gguf_at
from configs.discovery import FoundModel, scan_models
from instance_manager.backends.model_paths import find_model
from instance_manager.gguf.headers import header_at
from instance_manager.gguf.models import problem_at
from tests.configs.test_discovery import put, put_cached
from tests.gguf_files import of_type, put_gguf, put_split, tiny, vocabulary

NOWHERE = Path("/none")


def scan(*roots: Path, cache: Path = NOWHERE) -> dict[str, FoundModel]:
    return {model.name: model for model in scan_models(roots, cache, find_gguf).models}


def names(*roots: Path, cache: Path = NOWHERE) -> dict[str, tuple[str, ...]]:
    """Names of all models, with their aliases."""
    return {name: model.aliases for name, model in scan(*roots, cache=cache).items()}


def remarks(root: Path) -> list[str]:
    return [remark.text for remark in scan_models([root], NOWHERE, find_gguf).remarks]


def test_files_at_the_top_are_models_by_their_own_names(tmp_path: Path) -> None:
    put_gguf(tmp_path, "Foo-Q8_0.gguf", "Foo-Q4_K_M.gguf", "bar.gguf", "Baz-v2.IQ2_M.gguf")
    assert names(tmp_path) == {
        "Foo:Q4_K_M": ("Foo",),
        "Foo:Q8_0": (),
        "bar": (),
        "Baz-v2:IQ2_M": ("Baz-v2",),
    }
    assert remarks(tmp_path) == []


@pytest.mark.parametrize("label", ["one", "publisher/one-GGUF"])
def test_a_folders_models_are_named_like_it(tmp_path: Path, label: str) -> None:
    put_gguf(tmp_path / label, "Other-Q8_0.gguf", "Other-Q6_K.gguf")
    assert names(tmp_path) == {f"{label}:Q6_K": (), f"{label}:Q8_0": (label,)}
    put_gguf(tmp_path / label, "Other-Q4_K_M.gguf")
    assert names(tmp_path)[f"{label}:Q4_K_M"] == (label,), "names stay, the default moves"
    assert names(tmp_path)[f"{label}:Q8_0"] == ()


def test_a_folder_of_different_models_lists_each(tmp_path: Path) -> None:
    put_gguf(tmp_path / "all", "Foo-Q8_0.gguf", "Bar-Q8_0.gguf", "all-Q4_0.gguf")
    assert names(tmp_path) == {
        "all/Foo:Q8_0": ("all/Foo",),
        "all/Bar:Q8_0": ("all/Bar",),
        "all:Q4_0": ("all",),
    }


def test_folders_of_quantisations_belong_to_their_model(tmp_path: Path) -> None:
    put_gguf(tmp_path / "pub" / "Foo-GGUF", "Q8_0/Foo-Q8_0.gguf", "Foo-Q2_K/Foo-Q2_K.gguf", "mmproj-F16.gguf")
    put_gguf(tmp_path / "Bar", "Q8_0/Bar-Q8_0.gguf")
    assert names(tmp_path) == {
        "pub/Foo-GGUF:Q8_0": ("pub/Foo-GGUF",),
        "pub/Foo-GGUF:Q2_K": (),
        "Bar:Q8_0": ("Bar",),
    }


def test_the_parts_of_a_split_file_are_one_model_and_an_incomplete_one_has_a_problem(tmp_path: Path) -> None:
    put_split(tmp_path / "a", "a-Q8_0", 3)
    put_split(tmp_path / "b", "b-Q8_0", 4, missing=(1, 3))
    found = scan(tmp_path)
    assert sorted(found) == ["a:Q8_0", "b:Q8_0"]
    assert found["a:Q8_0"].path == tmp_path / "a" / "a-Q8_0-00001-of-00003.gguf"
    assert found["a:Q8_0"].size_bytes == sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    assert found["a:Q8_0"].problem is None
    problem = found["b:Q8_0"].problem
    assert problem is not None
    assert "it lacks b-Q8_0-00001-of-00004.gguf and 1 more of its 4 parts" in problem
    assert remarks(tmp_path) == [f"MODEL_DIRS: {tmp_path}/b/b-Q8_0-00002-of-00004.gguf: {problem}"]


def test_a_projector_counts_to_its_model_and_is_none_itself(tmp_path: Path) -> None:
    put_gguf(tmp_path / "see", "see-Q8_0.gguf", "mmproj-see-f16.gguf")
    found = scan(tmp_path)
    assert list(found) == ["see:Q8_0"]
    assert found["see:Q8_0"].size_bytes == 2 * len(tiny())
    assert found["see:Q8_0"].description is not None
    assert found["see:Q8_0"].description["mmproj"] == "mmproj-see-f16.gguf"


def test_what_is_not_a_model_by_its_header_is_not_listed(tmp_path: Path) -> None:
    put_gguf(tmp_path / "m", "m-Q8_0.gguf")
    put_gguf(tmp_path / "m", "lora.gguf", content=of_type("adapter"))
    put_gguf(tmp_path / "m", "calibration.gguf", content=of_type("imatrix"))
    put_gguf(tmp_path, "ggml-vocab-llama.gguf", content=vocabulary())
    assert names(tmp_path) == {"m:Q8_0": ("m",)}


def test_files_that_cannot_be_read_have_a_problem(tmp_path: Path) -> None:
    put_gguf(tmp_path / "m", "m-Q8_0.gguf", content=tiny()[:100])
    (found,) = scan(tmp_path).values()
    assert found.problem is not None and "m-Q8_0.gguf isn't a whole GGUF file" in found.problem
    assert found.description is None
    (tmp_path / "m" / "gone-Q8_0.gguf").symlink_to(tmp_path / "nothing.gguf")
    assert f"MODEL_DIRS: {tmp_path}/m/gone-Q8_0.gguf: is a broken link" in remarks(tmp_path)


def test_links_are_followed_within_the_folder_only(tmp_path: Path) -> None:
    root, outside = tmp_path / "models", put_gguf(tmp_path / "outside", "x-Q8_0.gguf")
    put_gguf(root / "in", "in-Q8_0.gguf")
    (root / "link-Q8_0.gguf").symlink_to(root / "in" / "in-Q8_0.gguf")
    (root / "out-Q8_0.gguf").symlink_to(outside / "x-Q8_0.gguf")
    (root / "out").symlink_to(outside)
    assert sorted(scan(root)) == ["in:Q8_0", "link:Q8_0"]
    assert any(f"{root}/out-Q8_0.gguf: is a link that leads out of {root}" in line for line in remarks(root))


def test_the_hubs_cache_has_a_model_for_each_quantisation(tmp_path: Path) -> None:
    for commit, files in (("aaa", ("Foo-Q4_K_M.gguf", "Foo-Q8_0.gguf")), ("bbb", ("Foo-Q8_0.gguf",))):
        snapshot = put_cached(tmp_path, "org/Foo-GGUF", *files, commit=commit)
    for blob in (tmp_path / "hub" / "models--org--Foo-GGUF" / "blobs").iterdir():
        blob.write_bytes(tiny())
    found = scan(cache=tmp_path / "hub")
    assert {name: model.aliases for name, model in found.items()} == {
        "org/Foo-GGUF:Q8_0": (),
        "org/Foo-GGUF:Q4_K_M": ("org/Foo-GGUF",),
    }
    assert found["org/Foo-GGUF:Q8_0"].path == snapshot / "Foo-Q8_0.gguf", "of the main branch"
    assert found["org/Foo-GGUF:Q4_K_M"].path.parent.name == "aaa", "of an earlier download"


def test_a_file_in_a_repositorys_folder_is_found(tmp_path: Path) -> None:
    snapshot = put_cached(tmp_path, "org/Foo-GGUF")
    put_split(snapshot / "BF16", "Foo-BF16", 2)
    assert names(cache=tmp_path / "hub") == {"org/Foo-GGUF:BF16": ("org/Foo-GGUF",)}


def test_beside_other_weights_only_names_with_a_quantisation_are_taken(tmp_path: Path) -> None:
    put(tmp_path / "both", "config.json", "model.safetensors")
    put_gguf(tmp_path / "both", "both-Q8_0.gguf")
    assert names(tmp_path) == {"both": (), "both:Q8_0": ()}


def test_the_first_of_a_name_wins(tmp_path: Path) -> None:
    put_gguf(tmp_path / "a" / "m", "m-Q8_0.gguf")
    put_gguf(tmp_path / "b" / "m", "m-Q8_0.gguf", "m-Q4_K_M.gguf")
    found = scan(tmp_path / "a", tmp_path / "b")
    assert {name: model.aliases for name, model in found.items()} == {"m:Q8_0": ("m",), "m:Q4_K_M": ()}
    assert found["m:Q8_0"].path == tmp_path / "a" / "m" / "m-Q8_0.gguf"


def test_names_say_nothing_of_the_machine(tmp_path: Path) -> None:
    put_gguf(tmp_path / "m", "m-Q8_0.gguf")
    description = scan(tmp_path)["m:Q8_0"].description
    assert str(tmp_path) not in repr(description)


def test_a_file_is_read_once_as_long_as_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(100):
        put_gguf(tmp_path / "many", f"model{number}-Q8_0.gguf")
    first = scan(tmp_path)
    monkeypatch.setattr(
        "instance_manager.gguf.headers.read_header", lambda *_, **__: pytest.fail("read again")
    )
    assert scan(tmp_path) == first
    assert len(first) == 100


def test_one_of_thousands_is_looked_at_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalog may name each file of a large folder, and a list asks each for its problem."""
    names = [f"model{number}-Q8_0.gguf" for number in range(10, 60)]
    put_gguf(tmp_path, *names, "mmproj-model17-F16.gguf")
    reads: list[Path] = []
    original = header_at

    def counted(path: Path) -> object:
        reads.append(path)
        return original(path)

    monkeypatch.setattr("instance_manager.gguf.models.header_at", counted)
    for name in names:
        found = gguf_at(tmp_path / name)
        assert found is not None and found.description is not None
        assert (found.description["mmproj"] is not None) is ("17" in name)
    assert len(reads) <= 4 * len(names)
    monkeypatch.setattr("os.scandir", lambda *_: pytest.fail("lists a folder"))
    assert {problem_at(tmp_path / name) for name in names} == {None}


def test_a_folder_stands_for_its_default_unless_its_models_differ(tmp_path: Path) -> None:
    put_gguf(tmp_path / "one", "x-Q8_0.gguf", "x-Q4_K_M.gguf")
    found = gguf_at(tmp_path / "one")
    assert found is not None and found.path.name == "x-Q4_K_M.gguf"
    assert find_model(str(tmp_path / "one"), ()) == str(found.path)
    for names in (("model.gguf", "other.gguf"), ("a-Q8_0.gguf", "b-Q8_0.gguf")):
        folder = put_gguf(tmp_path / f"with-{names[0]}", *names)
        assert gguf_at(folder) is None
        assert find_model(str(folder), ()) == str(folder)
    put(tmp_path / "one", "model.safetensors")
    assert gguf_at(tmp_path / "one") is None
