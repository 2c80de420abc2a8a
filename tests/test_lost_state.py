"""The state is lost or damaged while engines run: no engine is orphaned. Real processes throughout."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tests.berth_process import BerthProcess
from tests.successive_berths import Berths, are_running, create, end, eventually, is_alive, kill, records


@pytest.fixture
def berths(tmp_path: Path) -> Iterator[Berths]:
    berths = Berths(tmp_path)
    try:
        yield berths
    finally:
        berths.close()


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def spoil_the_record(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "berth.db")) as database, database:
        database.execute("UPDATE records SET body = '{' WHERE instance_id = 'one'")


# What happens to STATE_DIR while no Berth runs, and whether the engine is recovered.
LOSSES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "all": (empty, False),
    "the name damaged": (lambda folder: (folder / "berth-id").write_bytes(b"\xff" * 5000), True),
    "status files": (lambda folder: shutil.rmtree(folder / "run"), True),
    "a record": (spoil_the_record, False),
    "the database cut off": (lambda folder: os.truncate(folder / "berth.db", 10), True),  # its WAL has all
}


@pytest.mark.parametrize("loss", LOSSES)
def test_engines_of_a_lost_state_are_adopted_or_stopped(berths: Berths, loss: str) -> None:
    lose, is_adopted = LOSSES[loss]
    first = berths.begin()
    with first.client() as client:
        pid = create(client, "one")["pid"]
        kill(first)
        lose(berths.folder / "state")
        second = berths.begin()
        if is_adopted:
            eventually(partial(are_running, client, "one"), second.output)
            assert records(client)["one"]["pid"] == pid
        else:
            eventually(lambda: not is_alive(pid), second.output)
            eventually(lambda: not second.survivors(), second.output)
            assert client.get("/info").json()["instances"] == {}
            create(client, "one")
        assert "Traceback" not in second.output()
    end(second)
    assert berths.survivors() == []


def test_a_state_folder_emptied_at_run_time_is_rewritten(berths: Berths) -> None:
    """It is noticed and logged, and the next Berth finds everything."""
    state = berths.folder / "state"
    first = berths.begin()
    with first.client() as client:
        pid = create(client, "one")["pid"]
        client.post("/proxy/one/v1/completions", json={"model": "fake", "prompt": "a"})
        empty(state)
        eventually((state / "berth.db").exists, first.output)
        eventually(lambda: "put back" in first.output(), first.output)
        assert client.get("/health/readiness").json() == {"status": "ok"}
        create(client, "two")
        refused = _refused_beside(berths)
        assert "another Berth" in refused
        kill(first)
        assert "Traceback" not in first.output()
        second = berths.begin()
        eventually(partial(are_running, client, "one", "two"), second.output)
        assert records(client)["one"]["pid"] == pid
    end(second)
    assert berths.survivors() == []


def _refused_beside(berths: Berths) -> str:
    beside: BerthProcess = berths.launch(APP_PORT="0")
    assert beside.wait() == 1
    return beside.output()


def test_a_foreign_file_prevents_the_start(berths: Berths) -> None:
    photo = berths.folder / "photo.jpg"
    photo.write_bytes(b"\xff\xd8\xff\xe0 holidays")
    before = photo.stat()
    berth = berths.launch(STATE_URL=f"sqlite:///{photo}")
    assert berth.wait() == 2  # a wrong setting: a restart doesn't help
    said = [line for line in berth.output().splitlines() if line.startswith("berth: ")]
    assert len(said) == 1 and "STATE_URL" in said[0] and str(photo) in said[0]
    assert "Traceback" not in berth.output()
    assert photo.stat().st_mtime_ns == before.st_mtime_ns
    assert [one.name for one in berths.folder.glob("photo*")] == ["photo.jpg"]
