"""Who writes an instance, by the source: as the docstring of `Instance` says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from instance_manager.config import ManagerConfig
from instance_manager.events import EventLog
from instance_manager.lifecycle.instance_record import instance_of
from tests.berth_process import ROOT
from tests.instance_manager.test_recovery_rules import RECORD

LIFECYCLE = ROOT / "instance_manager" / "lifecycle"
STATE_WRITERS = {"supervisor", "run_loop", "sleep_controller", "sleep_requests"}
ALLOWED_OUTSIDE = {
    "manager": {"set_policy"},
    "model_registry": {"set_other_names", "publish_update"},
    "memory_planner": {"set_memory"},
}
INSTANCE_NAMES = {"instance", "one", "replica", "each"}  # by which code outside knows an instance


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for package in ("api", "composition", "instance_manager"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def assigned(tree: ast.Module) -> Iterator[ast.Attribute]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node


def is_instance(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in ("instance", "_instance")
    return isinstance(node, ast.Name) and node.id in INSTANCE_NAMES


def calls(tree: ast.Module) -> set[str]:
    called = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {one.attr for one in called if isinstance(one, ast.Attribute)}


async def test_outside_its_package_an_instance_is_written_by_its_methods_only() -> None:
    attributes = vars(instance_of(RECORD, ManagerConfig(), EventLog(), lambda: 0.0)).keys()
    assert {"state", "pinned", "memory_bytes", "other_names", "idle_timeout_s"} <= attributes
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for path, tree in sources()
        if not path.is_relative_to(LIFECYCLE)
        for node in assigned(tree)
        if node.attr in attributes and is_instance(node.value)
    ]
    assert found == []


def test_only_the_supervisor_and_its_helpers_change_the_state() -> None:
    found = {path.stem for path, tree in sources() if "set_state" in calls(tree)}
    assert found == STATE_WRITERS
    assert {path.stem for path, tree in sources() if "set_initial_state" in calls(tree)} == {"registry"}


def test_each_writer_outside_sets_what_is_its_own() -> None:
    setters = {"set_policy", "set_other_names", "set_memory", "set_process", "publish_update"}
    found = {
        path.stem: used
        for path, tree in sources()
        if not path.is_relative_to(LIFECYCLE) and (used := calls(tree) & setters)
    }
    assert found == ALLOWED_OUTSIDE
