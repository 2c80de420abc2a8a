"""Tests `make structure` on trees with known imports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from docs.import_graph import Package
from docs.structure import MAX_FILE_LINES, PACKAGES, Codebase, main

CONTRACTS = """
[[tool.importlinter.contracts]]
name = "by full names"
type = "layers"
layers = ["api.door", "(api.hall) | api.stairs", "api.cellar : api.well : api.gone"]

[[tool.importlinter.contracts]]
name = "by relative names"
type = "layers"
containers = ["engine.server", "cli"]
layers = ["app", "stream"]

[[tool.importlinter.contracts]]
name = "of something else"
type = "layers"
layers = ["api", "instance_manager"]
"""

API = {
    "api/__init__.py": "from api.door import Door\n",
    "api/__main__.py": "import api.door\n",
    "api/door.py": "from api import hall\nimport api.cellar.rack\n",
    "api/hall.py": "def late():\n    from .stairs import up\n    import api.stairs\n",
    "api/stairs.py": "from . import cellar\nimport instance_manager.manager\n",
    "api/cellar/__init__.py": "from .rack import Wine\n",
    "api/cellar/rack.py": "from ..well import Water\nfrom api.cellar import deep\n",
    "api/cellar/deep.py": "",
    "api/well.py": "from api.hall import late\n",
}


def build(root: Path, files: Mapping[str, str]) -> Codebase:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Codebase(root)


def dependencies_of(package: Package) -> set[str]:
    return {f"{source} -> {target}" for source, targets in package.dependencies.items() for target in targets}


def test_every_form_of_import_between_members_is_a_dependency(tmp_path: Path) -> None:
    api = build(tmp_path, API).packages["api"]
    assert api.members == {"door", "hall", "stairs", "cellar", "well"}
    assert dependencies_of(api) == {
        "door -> hall",
        "door -> cellar",
        "hall -> stairs",
        "stairs -> cellar",
        "cellar -> well",
        "well -> hall",
    }
    assert len(api.modules) == 9


def test_the_depth_counts_all_members_of_a_cycle(tmp_path: Path) -> None:
    api = build(tmp_path, API).packages["api"]
    assert api.cycles == [["cellar", "hall", "stairs", "well"]]
    assert api.depth == 5
    api = build(tmp_path, {"api/well.py": ""}).packages["api"]
    assert api.cycles == []
    assert api.depth == 5  # door, hall, stairs, cellar, well


def test_violations_are_what_a_layers_contract_forbids(tmp_path: Path) -> None:
    server = {"engine/server/app.py": "", "engine/server/stream.py": "from .app import App"}
    codebase = build(tmp_path, {**API, **server, "engine/core.py": "", "pyproject.toml": CONTRACTS})
    assert codebase.packages["api"].violations == [
        "hall -> stairs",
        "well -> hall",
    ]  # `|` forbids imports, `:` does not
    assert codebase.packages["api"].ordered == {"door", "hall", "stairs", "cellar", "well"}
    assert codebase.packages["engine.server"].violations == ["stream -> app"]
    assert codebase.packages["engine"].members == {"core", "server"}
    assert not codebase.packages["engine"].orders, "another package's contract"


def test_without_a_contract_there_are_no_violations_and_the_target_is_missed(tmp_path: Path) -> None:
    targets = {target.name: target for target in build(tmp_path, API).targets()}
    assert targets["api: violations"].figure is None
    assert not targets["api: violations"].met
    assert targets["api: members without an order"].figure == 5


def test_code_is_neither_blank_nor_comment_nor_docstring(tmp_path: Path) -> None:
    head, value = '"""One\n\ntwo."""\n\n# why\n', 'X = """a\n\nb"""  # and this\n\n\n'
    text = head + value + 'def f():\n    """Three."""\n    return X\n'
    codebase = build(tmp_path, {"app.py": text, "tests/test_app.py": "X = 1\n"})
    assert (codebase.lines, codebase.code) == (13, 5)


def test_long_functions_are_counted_without_their_decorators(tmp_path: Path) -> None:
    body = "    pass\n"
    long = "@cache\n@wraps(\n    1\n)\nasync def long():\n" + body * 50
    codebase = build(tmp_path, {"cli/a.py": long + "def fits():\n" + body * 49})
    assert codebase.long_functions == [(51, "cli.a: long")]


def test_long_files_are_listed_longest_first(tmp_path: Path) -> None:
    files = {
        f"cli/n{lines}.py": "X = 1\n" * lines for lines in (300, 301, MAX_FILE_LINES, MAX_FILE_LINES + 1)
    }
    codebase = build(tmp_path, files)
    assert codebase.long_files == [(321, "cli.n321"), (320, "cli.n320"), (301, "cli.n301")]


def test_classes_are_duplicates_within_a_process_only(tmp_path: Path) -> None:
    lease, state = "class Lease: ...\n", "class State: ...\n"
    files = {"api/a.py": lease + state, "configs/b.py": lease, "engine/c.py": state, "cli/d.py": state}
    assert list(build(tmp_path, files).duplicate_classes()) == [("berth", "Lease", ["api.a", "configs.b"])]


def test_only_check_fails_over_a_missed_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path, API)
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--check"]) == 1
    header, app, api = capsys.readouterr().out.splitlines()[:3]
    assert header.split()[4:] == ["members", "depth", "dependencies", "violations", "ordered", "cycles"]
    assert app.split()[0] == "app.py"
    assert api.split() == ["api", "9", "13", "13", "5", "5", "6", "-", "-", "1"]


def test_check_passes_where_every_target_is_met(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packages = [name for name in PACKAGES if name != "app"]
    files = {f"{name.replace('.', '/')}/only.py": "class Same: ...\n" for name in packages}
    contract = (
        '[[tool.importlinter.contracts]]\nname = "n"\ntype = "layers"\ncontainers = [{}]\nlayers = [{}]\n'
    )
    orders = [(f'"{name}"', '"only"') for name in packages if name != "engine"] + [
        ('"engine"', '"server", "only"')
    ]
    build(tmp_path, {**files, "pyproject.toml": "".join(contract.format(*order) for order in orders)})
    assert main([str(tmp_path), "--check", "--classes"]) == 0
    of_berth = "api.only, instance_manager.only, composition.only, configs.only, log_output.only"
    of_berth += ", host_limits.only"
    assert f"berth Same: {of_berth}" in capsys.readouterr().out
