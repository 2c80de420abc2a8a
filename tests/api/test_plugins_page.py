"""docs/plugins.md is correct: the parts it names exist, and its example works."""

from __future__ import annotations

import json
import re
from pathlib import Path

from api.protocols.app import ProtocolApp
from api.protocols.base import ProtocolAdapter, StreamTranslator
from api.protocols.generate import GenerateRequest
from api.protocols.registry import ENTRY_POINT_GROUP, load_protocols
from tests.api.protocol_apps import Inner, ask, chat_answer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "plugins.md"
TEXT = PAGE.read_text(encoding="utf-8")


def section(title: str) -> str:
    return TEXT.split(f"## {title}\n")[1].split("\n## ")[0]


def table(text: str) -> set[str]:
    """The names in the first column of a section's table, without their arguments."""
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)", row)}


def test_every_named_file_exists() -> None:
    named = re.findall(r"`((?:docs|api)/[\w/.]+)`", TEXT)
    assert len(named) >= 3
    assert [name for name in named if not (PAGE.parents[1] / name).exists()] == []


def test_all_parts_of_an_adapter_are_described() -> None:
    parts = {name for name in [*vars(ProtocolAdapter), *ProtocolAdapter.__annotations__] if name[0] != "_"}
    assert table(section("Writing one")) == parts
    for name in ("event", "end", "error", "media_type"):
        assert hasattr(StreamTranslator, name)
        assert f"`{name}" in TEXT


def test_the_fields_of_generate_are_described() -> None:
    described, fields = (
        table(section("Built in: `POST /generate`")),
        set(GenerateRequest.model_fields),
    )
    assert described <= fields
    assert described >= {name for name in fields if GenerateRequest.model_fields[name].description}


async def test_the_example_request_works() -> None:
    body = TEXT.split("-d '")[1].split("'")[0]
    inner = Inner([chat_answer()])
    app = ProtocolApp(inner, load_protocols(), protocol_of=lambda _: None, default_model="demo")
    assert (await ask(app, "/generate", json.loads(body))).status == 200
    assert [message["role"] for message in inner.asked["messages"]] == ["system", "user", "assistant", "user"]


def test_the_plugins_of_the_example_setting_load() -> None:
    names = TEXT.split("PROTOCOL_PLUGINS=")[1].split("\n")[0].split(",")
    assert [adapter.name for adapter in load_protocols([name for name in names if ":" in name])] == [
        "generate",
        "alpaca",
    ]
    assert f'"{ENTRY_POINT_GROUP}"' in TEXT
