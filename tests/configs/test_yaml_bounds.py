"""A models.yaml beyond the bounds is refused with the line, in the time it takes to read the text."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest

from configs.bounded_file import MAX_BYTES, read_bounded
from configs.catalog import load_catalog
from configs.catalog_error import CatalogError
from configs.key_file import KeyFileError, read_key_file
from configs.parameter_file import read_parameters
from configs.settings_error import SettingsError
from configs.yaml_bounds import MAX_DEPTH, MAX_ENTRIES, MAX_VALUES
from configs.yaml_document import YamlMistake, read_yaml


def laughs(levels: int, inside: str = "[{}]") -> str:
    """Each line refers to the previous line ten times."""
    lines = ["x0: &x0 [lol]"]
    for level in range(1, levels + 1):
        lines.append(f"x{level}: &x{level} " + inside.format(", ".join([f"*x{level - 1}"] * 10)))
    return "\n".join(lines)


def merges(levels: int) -> str:
    lines = ["x0: &x0 {a: 1}"]
    for level in range(1, levels + 1):
        lines.append(f"x{level}: &x{level} {{<<: [{', '.join([f'*x{level - 1}'] * 10)}]}}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        (laughs(8), "50,000 values, with aliases expanded", 6),
        (laughs(30), "50,000 values, with aliases expanded", 6),
        (laughs(8, "{{a: [{}]}}"), "50,000 values, with aliases expanded", 6),
        (merges(8), "50,000 values, with aliases expanded", 6),
        ("a: &a [" + "1, " * 1000 + "]\nb: [" + "*a, " * 1000 + "]", "50,000 values", 2),
        ("[" * 40 + "]" * 40, f"nested more than {MAX_DEPTH} deep", 1),
        (
            "a:\n" + "\n".join(f"{' ' * n}b{n}:" for n in range(1, 60)),
            f"nested more than {MAX_DEPTH} deep",
            33,
        ),
        ("[" * 100_000, f"nested more than {MAX_DEPTH} deep", 1),
        ("- " * 100_000, f"nested more than {MAX_DEPTH} deep", 1),
        ("models:\n" + "".join(f"  m{n}: {{}}\n" for n in range(20_000)), "2000 entries", 2002),
        ("- 1\n" * 3000, "2000 entries", 2001),
        ("a: &a [*a]", "alias refers to a node that contains it", 1),
    ],
    ids=range(12),
)
def test_yaml_beyond_the_bounds_is_refused_with_the_line(text: str, problem: str, line: int) -> None:
    began = time.process_time()
    with pytest.raises(YamlMistake) as refused:
        read_yaml(text)
    assert time.process_time() - began < 20
    assert problem in refused.value.problem
    assert refused.value.line == line


def test_yaml_at_the_bounds_is_accepted() -> None:
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert read_yaml(deep).root is not None
    assert len(read_yaml("- 1\n" * MAX_ENTRIES).data) == MAX_ENTRIES
    per_line = MAX_VALUES // 100
    text = "a: &a [" + ", ".join(["1"] * per_line) + "]\nb: [" + ", ".join(["*a"] * 98) + "]"
    assert len(read_yaml(text).data["b"]) == 98


def test_aliases_equal_the_values_they_refer_to() -> None:
    document = read_yaml("x: &x {a: [1, 2]}\ny: *x\nz: {<<: *x, b: 3}")
    assert document.data == {"x": {"a": [1, 2]}, "y": {"a": [1, 2]}, "z": {"a": [1, 2], "b": 3}}


@pytest.fixture
def huge(tmp_path: Path) -> Path:
    """100 MB, of which nothing is on the disk."""
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    return path


def test_oversized_files_are_refused(huge: Path) -> None:
    with pytest.raises(OSError, match="larger than the 1 MiB") as raised:
        read_bounded(huge)
    assert raised.value.errno == errno.EFBIG
    with pytest.raises(CatalogError, match="can't be read: it is larger than the 1 MiB"):
        load_catalog(huge)
    with pytest.raises(KeyFileError, match="it is larger than the 1 MiB"):
        read_key_file(huge)
    with pytest.raises(SettingsError, match=r"VLLM_CONFIG=.*it is larger than the 1 MiB"):
        read_parameters(huge)


def test_a_file_of_exactly_the_maximum_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_bytes(b"#" * (MAX_BYTES - 1) + b"\n")
    assert load_catalog(path).models == {}


def test_too_deeply_nested_parameters_are_an_error_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "vllm.json"
    path.write_text("[" * 100_000)
    with pytest.raises(SettingsError, match="not valid JSON"):
        read_parameters(path)
