"""Each client of the matrix, unmodified, does what docs/clients.md says, and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.berth_process import BerthProcess
from tests.clients.clients import run
from tests.clients.conftest import CHATS_ALONE, MODELS
from tests.clients.matrix import CHAT, CLIENTS, Client, Does

TRANSLATED = [client for client in CLIENTS if client.api != CHAT]
VECTOR_SIZE = 192  # of models/berth-demo


class Check(NamedTuple):
    field: str  # in which the script prints it
    is_right: Callable[[Any], bool]


CHECKS: dict[Does, Check] = {
    "answer": Check("plain", lambda text: "Berth gives every LLM engine" in text),
    "stream": Check("streamed", lambda text: len(text.split()) > 3),
    "tools": Check("asked", lambda cities: cities == ["Oslo"]),
    "object": Check("object", lambda made: isinstance(made["city"], str)),
    "embeddings": Check("embedding", lambda size: size == VECTOR_SIZE),
    "list": Check("models", lambda names: set(names) >= set(MODELS)),
}


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client(berth: BerthProcess, client: Client) -> None:
    check(client, run(berth, client.environment, client.script, client.provider))


@pytest.mark.parametrize("client", TRANSLATED, ids=lambda client: client.name)
def test_a_client_of_another_api_on_an_engine_that_has_chats_alone(
    berth: BerthProcess, client: Client
) -> None:
    check(client, run(berth, client.environment, client.script, client.provider, model=CHATS_ALONE))


def check(client: Client, got: Any) -> None:
    done = {does: check.is_right(got[check.field]) for does, check in CHECKS.items() if check.field in got}
    assert done == dict.fromkeys(client.does, True), got
    assert got.items() >= client.prints.items()
    assert "12 degrees" in got.get("after", "12 degrees"), got  # the answer to the tool's result
    assert got.get("next", "the answer of a later turn"), got
