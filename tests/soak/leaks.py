"""Checks that a storm leaks nothing: leases, processes, descriptors, ports, files, rows in the store."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.soak.deployment import Deployment

_SETTLES_WITHIN_S = 60.0
_SPARE_DESCRIPTORS = 4  # new connections to Redis, and a client connection that is still closing


def open_descriptors(pid: int) -> Counter[str]:
    """Counted by kind, without inode numbers."""
    found: Counter[str] = Counter()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[str(path.readlink()).partition("[")[0].rstrip(":0123456789")] += 1
        except OSError:
            continue
    return found


def eventually(problem: Callable[[], str], within_s: float = _SETTLES_WITHIN_S) -> list[str]:
    """Empty as soon as there is no problem; else the problem at the timeout."""
    until = time.monotonic() + within_s
    while (found := problem()) and time.monotonic() < until:
        time.sleep(0.1)
    return [found] if found else []


def when_idle(http: httpx.Client, deployment: Deployment) -> list[str]:
    """Without clients: no lease is out, no request waits, and each engine belongs to exactly one record."""

    def leases() -> str:
        records = _records(http)
        models = http.get("/models").json()["data"]
        busy = {record["instance_id"]: record["in_flight"] for record in records if record["in_flight"]}
        waiting = {model["name"]: model["queued"] for model in models if model["queued"]}
        return f"leases left: {busy}, waiting: {waiting}" if busy or waiting else ""

    def engines() -> str:
        known = {record["pid"] for record in _records(http) if record["pid"] is not None}
        running = {process.pid for process in deployment.processes() if not _is_shim(process)}
        unknown = {pid for pid in running - known if not _is_below(pid, known)}
        return (
            f"engines without a record: {unknown}; records without an engine: {known - running}"
            if (unknown or known - running)
            else ""
        )

    def zombies() -> str:
        children = psutil.Process(deployment.berth.pid).children()
        dead = [child.pid for child in children if _is_zombie(child)]
        return f"zombies: {dead}" if dead else ""

    return [*eventually(leases), *eventually(engines), *eventually(zombies)]


def delete_all(http: httpx.Client, models: list[str]) -> list[str]:
    """Stop and delete all instances."""
    problems = []
    for name in models:
        answer = http.post(f"/models/{name}/stop")
        problems += [] if answer.status_code == 200 else [f"{name} can't be stopped: {answer.text[:300]}"]
    for record in _records(http):
        answer = http.delete(f"/instances/{record['instance_id']}")
        gone = answer.status_code in (204, 404)
        problems += [] if gone else [f"{record['instance_id']} can't be deleted: {answer.text[:300]}"]
    return problems


def descriptors(pid: int, before: Mapping[str, int]) -> list[str]:
    """Descriptors that Berth has open beyond those of a fresh one without engines."""

    def excess() -> str:
        now = open_descriptors(pid)
        if sum(now.values()) <= sum(before.values()) + _SPARE_DESCRIPTORS:
            return ""
        return f"descriptors leaked: {dict(now - Counter(before))}"

    return eventually(excess)


def after_end(deployment: Deployment) -> list[str]:
    """What is left after Berth has ended, when everything was deleted before."""
    problems = eventually(lambda: _names(deployment), 10.0)
    problems += eventually(
        lambda: f"ports taken: {ports}" if (ports := deployment.taken_ports()) else "", 10.0
    )
    state = deployment.directory / "state"
    directories = (deployment.directory / "logs", state / "run")
    files = [str(path) for directory in directories for path in directory.rglob("*") if path.is_file()]
    drafts = [str(path) for path in state.glob("*") if path.suffix in (".tmp", ".new")]
    problems += [f"files left: {files + drafts}"] if files or drafts else []
    rows = _rows_in_redis(deployment) if deployment.redis is not None else _rows_in_file(state)
    left = {name: number for name, number in rows.items() if number}
    return [*problems, *([f"left in the store: {left}"] if left else [])]


def _names(deployment: Deployment) -> str:
    left = [f"{process.pid} {' '.join(process.cmdline())[-100:]}" for process in deployment.processes()]
    return f"processes left: {left}" if left else ""


def _rows_in_file(directory: Path) -> dict[str, int]:
    with closing(sqlite3.connect(directory / "berth.db")) as database:
        tables = ("records", "ports")
        return {table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}  # noqa: S608


def _rows_in_redis(deployment: Deployment) -> dict[str, int]:
    """Sizes of the hashes that an orderly end empties."""
    assert deployment.redis is not None
    with socket.create_connection(("127.0.0.1", deployment.redis.port), timeout=10) as connection:
        stream = connection.makefile("rwb")

        def query(line: str) -> int:
            stream.write(f"{line}\r\n".encode())
            stream.flush()
            return int(stream.readline()[1:])

        return {name: query(f"HLEN {{berth}}:{name}") for name in ("records", "ports", "leases")}


def _records(http: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get("/instances", params={"all": "true"}).json()["data"]
    return found


def _is_shim(process: psutil.Process) -> bool:
    try:
        return any(part.endswith("shim.py") for part in process.cmdline())
    except psutil.Error:
        return False


def _is_below(pid: int, known: set[int]) -> bool:
    """Whether it is a descendant of an engine, or has just exited."""
    try:
        return any(parent.pid in known for parent in psutil.Process(pid).parents())
    except psutil.Error:
        return not os.path.exists(f"/proc/{pid}")


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
