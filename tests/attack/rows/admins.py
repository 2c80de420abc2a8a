"""An admin's mistakes: bodies of control routes, the catalog, the state. The victim is not disturbed."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import psutil

from tests import fake_engine
from tests.attack.attack import Attack, attack
from tests.attack.environment import DEMO, AttackEnvironment
from tests.berth_process import BerthProcess
from tests.faults.environment import Skipped, eventually
from tests.instance_manager.stores.redis_process import REDIS_SERVER, RedisProcess

LONG = "x" * 900_000
NESTED = "[" * 900 + "]" * 900
DIGITS = "9" * 400
VALUES = {
    "a lone surrogate": r'"\ud800"',
    "a null": r'"a\u0000b"',
    "900 KB": json.dumps(LONG),
    "nested 900 deep": NESTED,
    "nested 100,000 deep": "[" * 100_000 + "]" * 100_000,
    "an infinite number": "1e400",
    "400 digits": DIGITS,
    "not a number": "NaN",
}
FIELDS = ("model_name", "name", "engine", "timeout", "params", "env", "devices", "command", "health_path")


def _bodies_of_control_routes(what: str) -> Attack:
    value = VALUES[what]
    spec = {"model_name": "bad", "engine": "command", "command": fake_engine.command(), "name": "bad"}

    def act(env: AttackEnvironment) -> None:
        good = {name: json.dumps(one) for name, one in spec.items()}
        routes = [("POST", "/instances", {**good, name: value}) for name in FIELDS]
        routes += [("POST", "/instances", {**good, name: f'{{"a": {value}}}'}) for name in ("params", "env")]
        routes += [("PATCH", f"/instances/{DEMO}", {name: value}) for name in ("timeout", "pinned")]
        routes += [("POST", "/models/pull", {"model": value})]
        with env.measured(len(value)):
            for method, path, fields in routes:
                if what == "400 digits" and "timeout" in fields and path != "/instances":
                    continue
                body = "{" + ", ".join(f'"{name}": {text}' for name, text in fields.items()) + "}"
                reply = env.admin(method, path, body.encode())
                env.note(reply.status)
                assert reply.status in (400, 422), f"{method} {path} {list(fields)}: {reply}"
                assert len(reply.body) < 2000, f"a long error: {len(reply.body)} bytes"

    return Attack(f"control bodies: {what}", "slip", act)


def _aliases(levels: int) -> str:
    names = [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, levels + 1)]
    return "\n".join(["x0: &x0 [lol]", *names])


CATALOGS: dict[str, Callable[[], str]] = {
    "8 levels of aliases": lambda: _aliases(8),
    "20,000 models": lambda: (
        "models:\n" + "".join(f"  m{n}:\n    model: a/b-{n}\n    aliases: [a{n}]\n" for n in range(20_000))
    ),
    "20,000 short models": lambda: "models:\n" + "".join(f" m{n}: {{}}\n" for n in range(20_000)),
    "nesting of 50,000": lambda: "models: " + "[" * 50_000,
    "100 MB": lambda: "#" * 100_000_000,
    "900 models": lambda: json.dumps({"models": {f"m{n}": {"model": f"a/b-{n}"} for n in range(900)}}),
}


def _catalog(what: str) -> Attack:
    def act(env: AttackEnvironment) -> None:
        text = CATALOGS[what]()
        whole = json.dumps({"models": env.catalog})
        if what == "900 models":  # within the limit
            text = json.dumps({"models": {**json.loads(text)["models"], **env.catalog}})
        try:
            with env.measured(len(text)):
                env.catalog_file.write_text(text)
                reply = env.admin("POST", "/reload", timeout_s=25)
                time.sleep(2.5)  # Berth itself checks it every two seconds
        finally:
            env.catalog_file.write_text(whole)
            env.admin("POST", "/reload")
        env.note(reply.status)
        assert reply.status == (200 if what == "900 models" else 422), str(reply)
        assert len(reply.body) < 2000 or reply.status == 200, f"a long error: {len(reply.body)} bytes"

    return Attack(f"models.yaml: {what}", "slip", act)


# Attacks on the state


def _the_state_folder_emptied(env: AttackEnvironment) -> None:
    state = env.folder / "state"
    with env.measured():
        for path in state.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        eventually("the database is back", (state / "berth.db").exists, 12)
        time.sleep(0.5)
    made = env.admin("PATCH", f"/instances/{DEMO}", {"pinned": True})
    assert made.status == 200, str(made)
    eventually("Berth says so", lambda: "put back" in env.berth.output(), 5)


def _the_write_ahead_log_removed(env: AttackEnvironment) -> None:
    state = env.folder / "state"
    with env.measured():
        for name in ("berth.db-wal", "berth.db-shm"):
            (state / name).unlink(missing_ok=True)
        for pinned in (True, False):
            made = env.admin("PATCH", f"/instances/{DEMO}", {"pinned": pinned})
            assert made.status == 200, str(made)
        time.sleep(3)
    found = env.admin("GET", f"/instances/{DEMO}")
    assert json.loads(found.body)["pinned"] is False, str(found)


def _is_zombie(process: psutil.Process) -> bool:
    return process.status() == psutil.STATUS_ZOMBIE


def _beside(env: AttackEnvironment, **settings: str) -> BerthProcess:
    """Another Berth of the same code, without models."""
    folder = env.folder / f"beside-{time.monotonic_ns()}"
    folder.mkdir()
    (folder / "models.yaml").write_text('{"models": {}}')
    defaults = {"STATE_DIR": str(folder / "state"), "MODELS_FILE": str(folder / "models.yaml")}
    return BerthProcess(folder, root=env.root, **{**defaults, **settings})


def _foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE events (event_id INTEGER PRIMARY KEY, body TEXT)")
        database.execute("INSERT INTO events VALUES (1, 'concert')")


FOREIGN: dict[str, Callable[[Path], object]] = {
    "a photo": lambda path: path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(range(256)) * 80),
    "a note": lambda path: path.write_text("Milk, eggs, a second GPU.\n"),
    "another program's database": _foreign_database,
}


def _state_url_of_a_foreign_file(env: AttackEnvironment) -> None:
    folder = env.folder / f"foreign-{time.monotonic_ns()}"
    folder.mkdir()
    for name, make in FOREIGN.items():
        make(folder / name)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with env.measured():
        for name in FOREIGN:
            beside = _beside(env, STATE_URL=f"sqlite:///{folder / name}")
            try:
                eventually("it refuses to start", partial(_is_zombie, psutil.Process(beside.pid)), 10)
                env.note(f"exit {beside.wait()}")
                assert "STATE_URL" in beside.output(), beside.output()[-300:]
                assert "Traceback" not in beside.output(), beside.output()[-300:]
            finally:
                beside.close()
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after == before, f"{sorted(after)} instead of {sorted(before)}, or changed"


def _damage_pages(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)


def _drop_a_table(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DROP TABLE records")


def _spoil_rows(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE records SET body = '{'")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "damaged pages": _damage_pages,
    "a missing table": _drop_a_table,
    "rows that are no records": _spoil_rows,
    "half a file": lambda path: path.write_bytes(path.read_bytes()[:6000]),
}


def _damaged(what: str) -> Attack:
    def act(env: AttackEnvironment) -> None:
        with env.measured():
            first = _beside(env)
            try:
                first.wait_until_serving()
                with first.client() as client:
                    spec = {"model_name": "one", "name": "one", "engine": "command", "timeout": 0}
                    client.post("/instances?wait=10", json={**spec, "command": fake_engine.command()})
                first.terminate()
                first.wait()
            finally:
                first.close()
            folder = max(env.folder.glob("beside-*"), key=lambda path: path.stat().st_ctime)
            with closing(sqlite3.connect(folder / "state" / "berth.db")) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            DAMAGES[what](folder / "state" / "berth.db")
            second = _beside(env, STATE_DIR=str(folder / "state"))
            try:
                second.wait_until_serving()
                with second.client() as client:
                    env.note(client.get("/instances").status_code)
                assert "Traceback" not in second.output(), second.output()[-600:]
            finally:
                second.close()

    return Attack(f"berth.db with {what}", "slip", act)


ATTACKS: tuple[Attack, ...] = (
    *map(_bodies_of_control_routes, VALUES),
    *map(_catalog, CATALOGS),
    attack("slip", _state_url_of_a_foreign_file),
    *map(_damaged, DAMAGES),
    attack("slip", _the_write_ahead_log_removed),
    attack("slip", _the_state_folder_emptied),
)


def _redis_loses(what: str, *words: str) -> Attack:
    """Another Berth keeps its state in Redis; it continues to own and start instances."""

    def act(env: AttackEnvironment) -> None:
        if REDIS_SERVER is None:
            raise Skipped("redis-server is not installed")
        folder = env.folder / f"redis-{time.monotonic_ns()}"
        folder.mkdir()
        redis = RedisProcess(folder)
        redis.start()
        beside = _beside(env, STATE_URL=redis.url, VLLM_BASE_PORT=str(env.berth.base_port))
        try:
            beside.wait_until_serving()
            with beside.client() as client, env.measured():
                spec = {
                    "model_name": "one",
                    "engine": "command",
                    "command": fake_engine.command(),
                    "timeout": 0,
                }
                client.post("/instances?wait=10", json={**spec, "name": "one"}).raise_for_status()
                pid = client.get("/instances/one").json()["pid"]
                for one in words:
                    redis.say(one.encode())
                time.sleep(4)
                made = client.post("/instances?wait=10", json={**spec, "name": "two"})
                env.note(made.status_code)
                assert made.status_code == 201, made.text[:300]
                assert client.get("/instances/one").json()["pid"] == pid
                assert client.get("/health/readiness").status_code == 200
            assert "Traceback" not in beside.output(), beside.output()[-600:]
        finally:
            beside.close()
            redis.kill()

    return Attack(f"Redis loses {what}", "slip", act)


REDIS: tuple[Attack, ...] = (
    _redis_loses("its leases", "DEL {berth}:leases"),
    _redis_loses("everything", "FLUSHALL"),
)
