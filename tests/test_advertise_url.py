"""The address at which other nodes reach this one."""

from __future__ import annotations

import socket

import pytest

from composition.policies import manager_config
from configs.settings_error import SettingsError
from configs.settings_reader import load_settings


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"APP_HOST": "10.0.0.5"}, "http://10.0.0.5:5000"),
        ({"APP_HOST": "fd00::5", "APP_PORT": "80"}, "http://[fd00::5]:80"),
        ({"APP_HOST": "0.0.0.0"}, f"http://{socket.gethostname()}:5000"),
        ({"APP_HOST": "::"}, f"http://{socket.gethostname()}:5000"),
        ({"APP_PORT": "0"}, ""),
        ({"ADVERTISE_URL": "http://door:81", "APP_PORT": "0"}, "http://door:81"),
        ({"ADVERTISE_URL": "http://door/"}, "http://door/"),
    ],
)
def test_the_address_is_set_or_derived_from_other_settings(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], expected: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert manager_config(load_settings()).advertise_url == expected


@pytest.mark.parametrize(
    "value",
    ["https://a", "a:5000", "http://", "http://a/b", "http://a?b", "http://a:x", "http://[", "http://u@a"],
)
def test_what_is_no_address_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ADVERTISE_URL", value)
    with pytest.raises(SettingsError, match=r"ADVERTISE_URL=.*http://HOST:PORT"):
        load_settings()
