"""Edits of models.yaml change only what was requested, atomically; comments and layout stay."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.catalog import load_catalog, parse_catalog
from configs.catalog_edit import edit_model, edit_text
from configs.catalog_error import CatalogError
from configs.yaml_document import YamlMistake, read_yaml
from configs.yaml_edit import rewrite, same

PATH = Path("/somewhere/models.yaml")
FILE = """\
# Head of the file

defaults:
    timeout: 600   # ten minutes

models:
    # The small one
    small:   # aside
        path: ./small
        # about its length
        max_model_len: 2048   # tokens
        params:  # flags
            # about sequences
            max_num_seqs: 8   # eight
            enforce_eager: true

    # The big one
    big: {model: org/big, pinned: true}   # in one line
    nothing:
    # The end
"""


def edited(text: str, name: str, changes: dict[str, Any]) -> str:
    return edit_text(text, PATH, name, changes)


@pytest.mark.parametrize(
    ("name", "changes", "before", "after"),
    [
        ("small", {"max_model_len": 4096}, "len: 2048 ", "len: 4096 "),
        ("small", {"max_model_len": None}, "        max_model_len: 2048   # tokens\n", ""),
        (
            "small",
            {"params": {"enforce_eager": None, "no_such": None}},
            "            enforce_eager: true\n",
            "",
        ),
        ("small", {"params": {"max-num-seqs": 4}}, "max_num_seqs: 8 ", "max_num_seqs: 4 "),
        (
            "small",
            {"params": {"swap": {"a": [1, "x y"]}}},
            "eager: true\n",
            'eager: true\n            swap:\n              a: [1, "x y"]\n',
        ),
        ("small", {"devices": ["0", "1"]}, "eager: true\n", 'eager: true\n        devices: ["0", "1"]\n'),
        ("big", {"pinned": False}, "pinned: true}", "pinned: false}"),
        ("big", {"pinned": None}, ", pinned: true}", "}"),
        ("big", {"model": None}, "{model: org/big, pinned", "{pinned"),
        ("big", {"timeout": 1.5}, "true}", "true, timeout: 1.5}"),
        ("nothing", {"pinned": True}, "nothing:\n", "nothing:\n      pinned: true\n"),
        ("new/one", {"engine": "vllm"}, "    nothing:\n", "    nothing:\n    new/one:\n      engine: vllm\n"),
    ],
)
def test_an_edit_changes_nothing_else(name: str, changes: dict[str, Any], before: str, after: str) -> None:
    assert FILE.count(before) == 1
    assert edited(FILE, name, changes) == FILE.replace(before, after)


def test_params_are_merged_and_removing_the_last_one_removes_the_field() -> None:
    once = edited("models:\n  a: {params: {x-y: 1, z: 2}}\n", "a", {"params": {"x_y": 3, "new": True}})
    assert parse_catalog(once, PATH).models["a"].params == {"x-y": 3, "z": 2, "new": True}
    empty = edited(once, "a", {"params": {"x_y": None, "z": None, "new": None}})
    assert "params" not in empty


def test_removing_params_leaves_the_text_around_them() -> None:
    lines = edited(FILE, "small", {"params": None}).splitlines()
    gone = [line for line in FILE.splitlines() if line not in lines]
    assert gone == [
        "        params:  # flags",
        "            # about sequences",
        "            max_num_seqs: 8   # eight",
        "            enforce_eager: true",
    ]


@pytest.mark.parametrize(
    "text",
    ["", "# only this\n", "# only this", "---\n", "{}\n", "models:\n", "models:  # none yet\n  # but soon\n",
     "models: {}\n", "defaults: {timeout: 1}\n", '{"models": {}}', "models:\r\n  a: {}\r\n"],
)  # fmt: skip
def test_a_model_can_be_added_to_any_valid_file(text: str) -> None:
    result = edited(text, "a", {"timeout": 5, "params": {"x": 1}})
    entry = parse_catalog(result, PATH).models["a"]
    assert (entry.timeout, entry.params) == (5, {"x": 1})
    assert [line for line in text.splitlines() if "#" in line] == [
        line for line in result.splitlines() if "#" in line
    ]
    assert ("\r\n" in text) == ("\r\n" in result) and result.count("\r\n") in (0, result.count("\n"))


def test_an_edit_without_a_change_does_not_write(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(FILE)
    before = path.stat()
    edit_model(path, "big", {"pinned": True, "engine": None})
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_alias_stays_where_others_use_it() -> None:
    text = (
        "models:\n  a:\n    params: &p {x: 1}  # shared\n  b:\n    params: *p\n  c:\n    <<: {pinned: true}\n"
    )
    result = edited(text, "b", {"params": {"x": 2}})
    assert result == text.replace("params: *p\n", "params:\n      x: 2\n")
    assert parse_catalog(edited(text, "c", {"pinned": False}), PATH).models["c"].pinned is False
    for name, changes in (("c", {"pinned": None}), ("a", {"params": None})):
        with pytest.raises(CatalogError, match=rf"models.{name}: "):
            edited(text, name, changes)


def test_an_invalid_change_leaves_the_file_untouched(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(FILE)
    for changes, problem in (
        (
            {"max_model_len": 0},
            r"models\.yaml: models\.small\.max_model_len=0: must be greater than or equal",
        ),
        ({"timout": 3}, r"models\.small\.timout: unknown key; did you mean timeout\?"),
        ({"params": {"x": float("nan")}}, "these changes can't be written as YAML"),
        ({"params": {"x": Path()}}, "these changes can't be written as YAML"),
        ({"aliases": ["big"]}, "is already a name of 'big'"),
    ):
        with pytest.raises(CatalogError, match=problem):
            edit_model(path, "small", changes)
    assert path.read_text() == FILE
    assert os.listdir(tmp_path) == ["models.yaml"]


def test_an_invalid_file_is_reported_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("models:\n  a:\n    pined: true\n")
    with pytest.raises(CatalogError, match=r"models\.yaml:3: models\.a\.pined: unknown key"):
        edit_model(path, "b", {"pinned": True})
    assert path.read_text() == "models:\n  a:\n    pined: true\n"


def test_file_mode_and_symlink_are_kept(tmp_path: Path) -> None:
    target, link = tmp_path / "real" / "m.yaml", tmp_path / "models.yaml"
    target.parent.mkdir()
    target.write_text(FILE)
    target.chmod(0o640)
    link.symlink_to(target)
    edit_model(link, "big", {"pinned": False})
    assert link.is_symlink() and stat.S_IMODE(target.stat().st_mode) == 0o640
    assert load_catalog(link).models["big"].pinned is False


def test_a_missing_file_is_created(tmp_path: Path) -> None:
    path = tmp_path / "new" / "models.yaml"
    edit_model(path, "a", {"model": "org/a", "timeout": None})
    assert path.read_text().startswith("# yaml-language-server: $schema=")
    assert load_catalog(path).models["a"].target == "org/a"


def test_a_folder_at_the_files_path_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="can't be read: Is a directory"):
        edit_model(tmp_path, "a", {})


def test_concurrent_edits_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(FILE)
    threads = [threading.Thread(target=edit_model, args=(path, f"m{n}", {"timeout": n})) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    models = load_catalog(path).models
    assert [models[f"m{n}"].timeout for n in range(8)] == list(range(8))
    assert os.listdir(tmp_path) == ["models.yaml"]


# --- any change to any text -------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["yes", "null", "~", "1.0", "1e3", "0x1", "2020-01-01", "<<", "=", "*a", "&a", "- a", "a: b", "# a",
     "a #b", "", " ", "/a/b", "org/name", "{a}", "'", '"', "\\", "|", "a\nb\n",
     "\u2028", "\x85", "\ufeff", "\U0001f600"]
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(TEXT, VALUES, min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(have=MAPPINGS, wanted=MAPPINGS, style=st.booleans())
def test_any_mapping_can_be_edited_into_any_other(
    have: dict[str, Any], wanted: dict[str, Any], style: bool
) -> None:
    first = rewrite("" if style else "{}\n", have)
    assert same(read_yaml(first).data, have)
    assert same(read_yaml(rewrite(first, wanted)).data, wanted)


FORMS = st.sampled_from(
    ["1  # beside", "{x: 1, y: {z: 2}}", "", "# beside", "[1, 2]  # beside",
     "|  # beside\n      two\n      lines\n", ">+\n      kept\n\n", "'a # no comment'",
     "plain text\n      goes on", "&q 3",
     "\n      # inside\n      x: 1  # in\n      y:\n      - 1\n      -\n      - 2",
     "\n    - 1\n    # inside\n    - a: 2\n    -  # null"]
)  # fmt: skip
KEYS = ["a", "b", "c", "d"]


@st.composite
def _documents(draw: st.DrawFn) -> str:
    """A block mapping with a comment, numbered, above each key."""
    text = "root:\n"
    for number, key in enumerate(draw(st.lists(st.sampled_from(KEYS), unique=True, min_size=1))):
        form = draw(FORMS)
        space = "" if form.startswith("\n") else " "
        text += f"    # above {number}\n    {key}:{space}{form}\n"
    return text + "    # below\n" + draw(st.sampled_from(["", "other: 1\n", "..."]))


CHANGES = st.dictionaries(st.sampled_from([*KEYS, "new"]), st.just(...) | VALUES, min_size=1, max_size=3)


@settings(max_examples=300, deadline=None)
@given(text=_documents(), changes=CHANGES)
def test_comments_survive_any_change(text: str, changes: dict[str, Any]) -> None:
    data = read_yaml(text).data
    root = {key: value for key, value in (data["root"] | changes).items() if value is not ...}
    result = rewrite(text, data | {"root": root})
    assert same(read_yaml(result).data, data | {"root": root})

    def own_lines(of: str) -> list[str]:
        return [line for line in of.splitlines() if line.startswith(("    # above", "    # below"))]

    assert own_lines(result) == own_lines(text)
    untouched = [key for key in data["root"] if key in root and same(root[key], data["root"][key])]
    for key in untouched:
        line = next(line for line in text.splitlines() if line.startswith(f"    {key}:"))
        assert line in result.splitlines()


def test_files_that_cannot_be_edited_are_reported() -> None:
    with pytest.raises(YamlMistake, match="by hand"):
        rewrite("a: &x {b: 1}\nc:\n  <<: *x\n", {"a": {"b": 1}, "c": {}})
