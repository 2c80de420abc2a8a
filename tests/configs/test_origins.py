"""ALLOWED_ORIGINS as people write it: accepted forms, and forms refused because they would allow more."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.origins import normalized_origin
from configs.settings_error import SettingsError
from configs.settings_reader import load_settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*", "*"),
        ("https://app.example.com", "https://app.example.com"),
        ("https://App.Example.com/", "https://app.example.com"),
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://app:80/", "http://app"),
        ("http://app:443", "http://app:443"),
        ("http://localhost:*", "http://localhost:*"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("https://*.example.com", "https://*.example.com"),
        ("http://*:3000", "http://*:3000"),
        ("chrome-extension://*", "chrome-extension://*"),
        ("app://obsidian.md", "app://obsidian.md"),
    ],
)
def test_origins_are_written_as_browsers_write_them(text: str, expected: str) -> None:
    assert normalized_origin(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "app.example.com",
        "null",  # every sandboxed page's
        "https://",
        "https://app.example.com/path",
        "https://app.example.com?x",
        "https://user@app.example.com",
        "http://192.168.1.*",
        "https://app*.example.com",
        "https://*example.com",
        "https://a.*.com",
        "http://localhost:30*",
        '["*"]',
        "https://bücher.example",
    ],
)
def test_an_invalid_origin_prevents_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("ALLOWED_ORIGINS", f"https://fine.example, {text}")
    with pytest.raises(SettingsError, match=r"ALLOWED_ORIGINS=.*https://app\.example\.com"):
        load_settings()


def test_several_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().allowed_origins == ()
    monkeypatch.setenv("ALLOWED_ORIGINS", " https://A.example , http://localhost:* ,")
    assert load_settings().allowed_origins == ("https://a.example", "http://localhost:*")
