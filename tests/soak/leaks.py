"""What a storm may not leave behind: leases, processes, descriptors, ports, files, rows in the store."""

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

from tests.soak.deployment import Place

_SETTLES_WITHIN_S = 60.0
_SPARE_DESCRIPTORS = 4  # the connections to Redis are other ones, and one to a client may yet be closing


def open_descriptors(pid: int) -> Counter[str]:
    """By what they are, without numbers."""
    found: Counter[str] = Counter()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[str(path.readlink()).partition("[")[0].rstrip(":0123456789")] += 1
        except OSError:
            continue
    return found


def eventually(problem: Callable[[], str], within_s: float = _SETTLES_WITHIN_S) -> list[str]:
    """Empty, as soon as there is none; what it is when the time is out."""
    until = time.monotonic() + within_s
    while (found := problem()) and time.monotonic() < until:
        time.sleep(0.1)
    return [found] if found else []


def at_rest(http: httpx.Client, place: Place) -> list[str]:
    """Nobody asks any more: no lease is out, nobody waits, and each engine is known, and known once."""

    def leases() -> str:
        records = _records(http)
        models = http.get("/models").json()["data"]
        busy = {one["instance_id"]: one["in_flight"] for one in records if one["in_flight"]}
        waiting = {one["name"]: one["queued"] for one in models if one["queued"]}
        return f"leases left: {busy}, waiting: {waiting}" if busy or waiting else ""

    def engines() -> str:
        known = {one["pid"] for one in _records(http) if one["pid"] is not None}
        there = {one.pid for one in place.processes() if not _is_shim(one)}
        unknown = {pid for pid in there - known if not _is_below(pid, known)}
        return (
            f"engines without a record: {unknown}; records without an engine: {known - there}"
            if (unknown or known - there)
            else ""
        )

    def zombies() -> str:
        dead = [one.pid for one in psutil.Process(place.berth.pid).children() if _is_zombie(one)]
        return f"zombies: {dead}" if dead else ""

    return [*eventually(leases), *eventually(engines), *eventually(zombies)]


def clear(http: httpx.Client, models: list[str]) -> list[str]:
    """Stop and delete all there is."""
    problems = []
    for name in models:
        answer = http.post(f"/models/{name}/stop")
        problems += [] if answer.status_code == 200 else [f"{name} can't be stopped: {answer.text[:300]}"]
    for one in _records(http):
        answer = http.delete(f"/instances/{one['instance_id']}")
        gone = answer.status_code in (204, 404)
        problems += [] if gone else [f"{one['instance_id']} can't be deleted: {answer.text[:300]}"]
    return problems


def descriptors(pid: int, before: Mapping[str, int]) -> list[str]:
    """Those that Berth has open more than a fresh one, without any engine."""

    def excess() -> str:
        now = open_descriptors(pid)
        if sum(now.values()) <= sum(before.values()) + _SPARE_DESCRIPTORS:
            return ""
        return f"descriptors leaked: {dict(now - Counter(before))}"

    return eventually(excess)


def after_all(place: Place) -> list[str]:
    """When Berth has ended and everything had been deleted before."""
    problems = eventually(lambda: _names(place), 10.0)
    problems += eventually(lambda: f"ports taken: {ports}" if (ports := place.taken_ports()) else "", 10.0)
    folders = (place.folder / "logs", place.folder / "state" / "run")
    files = [str(path) for folder in folders for path in folder.rglob("*") if path.is_file()]
    beside = [str(path) for path in (place.folder / "state").glob("*") if path.suffix in (".tmp", ".new")]
    problems += [f"files left: {files + beside}"] if files or beside else []
    rows = _rows_in_redis(place) if place.redis is not None else _rows_in_file(place.folder / "state")
    left = {name: number for name, number in rows.items() if number}
    return [*problems, *([f"left in the store: {left}"] if left else [])]


def _names(place: Place) -> str:
    left = [f"{one.pid} {' '.join(one.cmdline())[-100:]}" for one in place.processes()]
    return f"processes left: {left}" if left else ""


def _rows_in_file(folder: Path) -> dict[str, int]:
    with closing(sqlite3.connect(folder / "berth.db")) as database:
        tables = ("records", "ports")
        return {one: database.execute(f"SELECT count(*) FROM {one}").fetchone()[0] for one in tables}  # noqa: S608


def _rows_in_redis(place: Place) -> dict[str, int]:
    """Of the hashes that an orderly end empties."""
    assert place.redis is not None
    with socket.create_connection(("127.0.0.1", place.redis.port), timeout=10) as connection:
        stream = connection.makefile("rwb")

        def ask(line: str) -> int:
            stream.write(f"{line}\r\n".encode())
            stream.flush()
            return int(stream.readline()[1:])

        return {one: ask(f"HLEN {{berth}}:{one}") for one in ("records", "ports", "leases")}


def _records(http: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get("/instances", params={"all": "true"}).json()["data"]
    return found


def _is_shim(process: psutil.Process) -> bool:
    try:
        return any(part.endswith("shim.py") for part in process.cmdline())
    except psutil.Error:
        return False


def _is_below(pid: int, known: set[int]) -> bool:
    """Whether it is an engine's own child, or has just gone."""
    try:
        return any(one.pid in known for one in psutil.Process(pid).parents())
    except psutil.Error:
        return not os.path.exists(f"/proc/{pid}")


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
