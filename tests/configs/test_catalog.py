"""models.yaml: its content, errors with their line, and edits that leave the rest alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from composition.policies import engine_kinds
from configs.catalog import Catalog, CatalogFile, load_catalog
from configs.catalog_edit import edit_model
from configs.catalog_error import CatalogError
from configs.discovery import scan_models
from configs.models_schema import SCHEMA_FILE, models_schema
from configs.root import CODE as ROOT

KINDS = engine_kinds()


def write(directory: Path, text: str) -> Path:
    path = directory / "models.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def read(directory: Path, text: str) -> Catalog:
    return load_catalog(write(directory, text), kinds=KINDS)


def test_a_models_fields_override_the_defaults(tmp_path: Path) -> None:
    catalog = read(
        tmp_path,
        """
defaults: {timeout: 30, dtype: bfloat16, env: {A: "1", B: "2"}}
models:
  one:
    path: weights/one
    timeout: 5
    env: {B: "3"}
    extra_args: [--max-num-seqs, "8"]
    params: {max-num-seqs: 4, seed: null}
    aliases: [uno]
  org/two:
""",
    )
    one, two = catalog.models["one"], catalog.models["org/two"]
    assert (one.timeout, two.timeout) == (5, 30)
    assert one.env == {"A": "1", "B": "3"}
    assert one.path == tmp_path / "weights/one"
    assert two.model == "org/two"
    assert one.engine_params()["max_num_seqs"] == 4
    assert one.engine_params()["dtype"] == "bfloat16"
    assert (catalog.resolve("uno"), catalog.resolve("nobody")) == ("one", None)


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("models:\n  a:\n    timout: 3\n", 3, "did you mean timeout?"),
        ("model:\n  a: {}\n", 1, "did you mean models?"),
        ("models:\n  a:\n    timeout: -1\n", 3, "models.a.timeout=-1"),
        ("models:\n  a:\n    pinned: 1\n", 3, "models.a.pinned=1"),
        ("models:\n  a:\n    engine: ollama\n", 3, "'vllm'"),
        ("models:\n  a:\n    engine: command\n", 2, "needs a `command`"),
        ("models:\n  a:\n    path: x\n    model: y\n", 2, "keep one"),
        ("models:\n  a:\n    min_replicas: 3\n    max_replicas: 2\n", 4, "min_replicas"),
        ("models:\n  a:\n    filters:\n      set: {}\n", 4, "did you mean set_params?"),
        ("models:\n  a: {}\n  b:\n    aliases: [a]\n", 4, "is already a name of 'a'"),
        ("models:\n  a: {}\n  a: {}\n", 3, "a"),
        ("models: [1]\n", 1, "must be a mapping"),
        ("models:\n  a: {\n", 3, "invalid YAML"),
        ("models:\n  ../a: {}\n", 2, "a name must be printable text"),
    ],
)
def test_an_error_is_reported_with_its_line(tmp_path: Path, text: str, line: int, expected: str) -> None:
    with pytest.raises(CatalogError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'models.yaml'}:{line}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_an_empty_catalog(tmp_path: Path) -> None:
    assert load_catalog(tmp_path / "none.yaml").models == {}


def test_the_example_is_valid_and_the_file_that_commands_write_is_ignored_by_git() -> None:
    assert set(load_catalog(ROOT / "configs" / "models.example.yaml").models) == {"small", "llama"}
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/configs/models.yaml", "/state/", "/logs/", ".env", "/berth.key"} <= set(ignored)
    assert "configs/models.yaml" in (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()


def test_the_schema_for_editors_is_current() -> None:
    assert json.loads(SCHEMA_FILE.read_text()) == models_schema(KINDS), "run python -m docs.models_schema"


def test_an_edit_keeps_comments_and_order(tmp_path: Path) -> None:
    path = write(
        tmp_path, "# mine\nmodels:\n  b: {}  # second\n  a:\n    timeout: 3  # short\n    pinned: true\n"
    )
    os.chmod(path, 0o640)

    edit_model(path, "a", {"timeout": 9, "pinned": None, "devices": ["0", "1"]})
    edit_model(path, "new", {"path": "/x", "timeout": None})

    text = path.read_text()
    assert text.startswith("# mine\nmodels:\n  b: {}  # second\n  a:\n    timeout: 9  # short\n")
    catalog = load_catalog(path)
    assert catalog.models["a"].devices == ("0", "1")
    assert not catalog.models["a"].pinned
    assert catalog.models["new"].timeout is None
    assert path.stat().st_mode & 0o777 == 0o640


def test_an_invalid_edit_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "models:\n  a: {}\n")
    with pytest.raises(CatalogError, match=r"models\.a\.timeout"):
        edit_model(path, "a", {"timeout": -1})
    assert path.read_text() == "models:\n  a: {}\n"
    assert os.listdir(tmp_path) == ["models.yaml"]


def test_editing_a_file_with_only_comments_keeps_them(tmp_path: Path) -> None:
    path = write(tmp_path, "# only words\n")
    edit_model(path, "a", {"timeout": 1})
    assert path.read_text().startswith("# only words\n")
    assert load_catalog(path).models["a"].timeout == 1


def test_a_changed_file_is_reloaded_and_an_error_logged_once(tmp_path: Path) -> None:
    path = write(tmp_path, "models:\n  a: {}\n  b: {}\n")
    file = CatalogFile(path)
    assert file.reload_if_changed() is None

    write(tmp_path, "models:\n  a: {timeout: 1}\n  b: {}\n  c: {}\n")
    assert file.reload_if_changed() == frozenset({"a", "c"})

    write(tmp_path, "models: 1\n")
    with pytest.raises(CatalogError):
        file.reload_if_changed()
    assert file.reload_if_changed() is None
    assert set(file.current.models) == {"a", "b", "c"}

    path.unlink()
    assert file.reload_if_changed() == frozenset({"a", "b", "c"})


def make_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x" * 10)


def test_models_on_disk_are_found(tmp_path: Path) -> None:
    models, home, outside = tmp_path / "models", tmp_path / "hf", tmp_path / "outside"
    for name in ("one", "org/two", ".hidden"):
        make_model(models / name)
    (models / "empty").mkdir()
    make_model(outside)
    (models / "link").symlink_to(outside)
    cached = home / "hub" / "models--owner--three"
    make_model(cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc\n")
    broken = home / "hub" / "models--owner--four"
    make_model(broken / "snapshots" / "def")
    (broken / "refs").mkdir()
    (broken / "refs" / "main").write_text("def")
    (broken / "snapshots" / "def" / "model.safetensors").unlink()
    (broken / "snapshots" / "def" / "model.safetensors").symlink_to("../../blobs/none")

    found = {one.name: one for one in scan_models([models, tmp_path / "nowhere"], home / "hub").models}

    assert set(found) == {"one", "org/two", "owner/three"}
    assert found["one"].size_bytes == 12
    assert found["one"].path == models / "one"
