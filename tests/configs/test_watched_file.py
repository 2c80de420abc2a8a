"""A watched file: a change counts once it is whole."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from configs.catalog import CatalogFile
from configs.watched_file import WatchedFile


def test_a_file_that_is_written_in_two_steps_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("models:\n  a: {}\n  b: {}\n")
    file = CatalogFile(path)
    path.write_text("")  # as an editor does, before it writes

    def finish() -> None:
        time.sleep(0.03)
        with path.open("w") as written:
            written.write("models:\n  a: {}\n  b: {timeout: 1}\n")
            written.flush()
            time.sleep(0.03)
            written.write("  c: {}\n")

    editor = threading.Thread(target=finish)
    editor.start()
    changed = file.reload_if_changed()
    editor.join()

    assert changed == frozenset({"b", "c"})
    assert set(file.current.models) == {"a", "b", "c"}


def test_each_change_is_seen_once(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    watched = WatchedFile(path)
    assert not watched.has_changed()
    path.write_text("one")
    assert watched.has_changed()
    watched.mark_read()
    assert not watched.has_changed()
    path.unlink()
    assert watched.has_changed()


def test_a_file_that_never_rests_is_read_nevertheless(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    watched = WatchedFile(path, settle_s=0.02, most_waits=3)
    is_over = threading.Event()

    def write_on() -> None:
        while not is_over.is_set():
            path.write_text(str(time.monotonic_ns()))

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        path.write_text("first")
        assert watched.has_changed()
    finally:
        is_over.set()
        writer.join()
