"""LOG_FILE: Berth's own lines go to it, even if the file is moved or removed meanwhile."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from log_output.setup import configure_logging
from tests.berth_process import running_berth

logger = logging.getLogger("berth.test")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("berth", "berth.access", "uvicorn"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_lines_go_to_stderr_and_to_the_file(
    tmp_path: Path, log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "berth.log"
    file.write_text("before\n")
    configure_logging(log_format, file=file)
    logger.info("schön", extra={"port": 1})
    before, line = file.read_text(encoding="utf-8").splitlines()
    assert before == "before"
    assert "schön" in line and line in capsys.readouterr().err
    if log_format == "json":
        assert (json.loads(line)["message"], json.loads(line)["port"]) == ("schön", 1)


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
def test_the_level_filters_lines(tmp_path: Path, level: str) -> None:
    file = tmp_path / "berth.log"
    configure_logging("text", level=level, file=file)
    names = ["debug", "info", "warning", "error", "critical"]
    for name in names:
        getattr(logger, name)("a line at %s", name)
    said = file.read_text()
    assert [name for name in names if f"a line at {name}" in said] == names[names.index(level) :]


def test_a_rotated_file_is_reopened(tmp_path: Path) -> None:
    file, moved = tmp_path / "berth.log", tmp_path / "berth.log.1"
    configure_logging("text", file=file)
    logger.info("one")
    file.rename(moved)
    logger.info("two")
    assert ("one" in moved.read_text(), "two" in moved.read_text()) == (True, False)
    assert "two" in file.read_text()
    file.write_text("")  # as `copytruncate` does
    logger.info("three")
    assert file.read_text().count("three") == 1 and "\0" not in file.read_text()


def test_a_removed_folder_is_reported_once_and_breaks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    file = folder / "berth.log"
    configure_logging("text", file=file)
    file.unlink()
    folder.rmdir()
    for number in range(3):
        logger.info("lost %d", number)
    output = capsys.readouterr().err
    assert output.count(f"LOG_FILE={file}: No such file or directory") == 1
    assert output.count("lost") == 3
    folder.mkdir()
    logger.info("again")
    assert "again" in file.read_text()


def test_berth_writes_there(tmp_path: Path) -> None:
    file = tmp_path / "own.log"
    with running_berth(tmp_path, LOG_FILE=str(file), LOG_FORMAT="json") as berth:
        said = [json.loads(line)["message"] for line in file.read_text().splitlines()]
        assert [line for line in said if f":{berth.port}" in line]
