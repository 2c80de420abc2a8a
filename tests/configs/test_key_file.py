"""The key file: its content, and errors that name their line and show no key."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from configs.key_file import KeyFileError, KeyLine, read_key_file
from configs.settings_error import SettingsError
from configs.settings_reader import load_settings

SECRET = "sk-not-to-be-shown"


def write(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_keys_with_names_and_limits(tmp_path: Path) -> None:
    text = """
    # who may ask
    alice: k1
    bob:k2   models=small,qwen* rate=10/s   # at night
    cron: k3 rate=600/m burst=5
    ops: k4 admin
    """
    assert read_key_file(write(tmp_path, text)) == (
        KeyLine("alice", "k1"),
        KeyLine("bob", "k2", models=("small", "qwen*"), rate_per_s=10.0, burst=10),
        KeyLine("cron", "k3", rate_per_s=10.0, burst=5),
        KeyLine("ops", "k4", is_admin=True),
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (SECRET, "name and a colon"),
        (f"a b: {SECRET}", "name and a colon"),
        ("alice:", "the key after the name"),
        (f"{SECRET}:", "the key after the name"),
        (f"alice: {SECRET}ü", "the key after the name"),
        (f"alice: k {SECRET}", "word 2"),
        (f"alice: k rate=1/s {SECRET}=1", "word 3"),
        (f"alice: {SECRET} admin=yes", "word 2"),
        (f"alice: {SECRET} models", "word 2"),
        (f"alice: {SECRET} models=,", "is empty"),
        (f"alice: {SECRET} rate=10", "rate=10 must be"),
        (f"alice: {SECRET} rate=0/s", "rate=0/s must be"),
        (f"alice: {SECRET} rate=1/s rate=2/s", "rate is given twice"),
        (f"alice: {SECRET} burst=3", "burst needs a rate"),
        (f"alice: {SECRET} rate=1/s burst=0", "burst=0 must be"),
        (f"alice: {SECRET} rate=1/s burst=²", "burst=² must be"),
        (f"alice: {SECRET} admin rate=1/s", "no limits"),
        (f"second: {SECRET}", "the key is already in line 1"),
        ("first: other", "the name is already in line 1"),
    ],
)
def test_an_error_names_its_line_and_shows_no_key(tmp_path: Path, line: str, problem: str) -> None:
    before = f"first: {SECRET if problem.startswith('the key is') else 'k1'}"
    text = f"{before}\n\n{line}\n"
    with pytest.raises(KeyFileError) as caught:
        read_key_file(write(tmp_path, text))
    message = str(caught.value)
    assert message.startswith("line 3: ")
    assert problem in message
    assert SECRET not in message


def test_the_setting_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match=r"^API_KEYS_FILE=.*nowhere: No such file"):
        load_settings().listed_keys()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("API_KEYS_FILE", str(tmp_path / "bytes"))
    with pytest.raises(SettingsError, match="UTF-8"):
        load_settings().listed_keys()


@pytest.mark.parametrize(("mode", "is_warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_world_readable_file_is_reported(
    tmp_path: Path, mode: int, is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="berth"):
        read_key_file(write(tmp_path, "alice: k1\n", mode))
    assert ("chmod 600" in caplog.text) is is_warned


def test_no_repr_shows_a_key(tmp_path: Path) -> None:
    assert SECRET not in repr(read_key_file(write(tmp_path, f"alice: {SECRET}\n")))


def test_an_unknown_setting_that_looks_like_a_key_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"ADMIN_API_KEY={SECRET}\n")
    with pytest.raises(SettingsError, match=r"ADMIN_API_KEY=\*\*\*.*ADMIN_API_KEYS") as caught:
        load_settings(tmp_path / ".env")
    assert SECRET not in str(caught.value)
