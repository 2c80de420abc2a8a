"""An answer of `/v1/chat/completions` as it streams in: pieces of thought, pieces of text, an end."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from cli.errors import CliError, ExitCode
from cli.refusals import refusal_in_stream
from cli.server import Server

PATH = "/v1/chat/completions"
_DONE = "[DONE]"


class Part(Enum):
    """What a piece belongs to."""

    REASONING = auto()
    CONTENT = auto()
    FINISH = auto()  # its text is the reason


@dataclass(frozen=True, slots=True)
class Piece:
    part: Part
    text: str


def stream_answer(server: Server, body: dict[str, Any]) -> Generator[Piece]:
    """The answer's pieces; closing the iterator closes the connection, and so ends the answer.

    Raises CliError, also where the stream tells of an error or ends before its time.
    """
    with server.stream("POST", PATH, body=body) as response:
        for event in server.events(response):
            if event.data == _DONE:
                return
            yield from _pieces(_parsed(event.data))
    raise CliError("the answer broke off", ExitCode.REFUSED, next_step="`berth logs NAME` may say why")


def _parsed(data: str) -> Any:
    try:
        chunk = json.loads(data)
    except ValueError:
        raise CliError(f"the answer has a piece that isn't JSON: {data[:80]!r}", ExitCode.REFUSED) from None
    if error := refusal_in_stream(chunk):
        raise error
    return chunk


def _pieces(chunk: dict[str, Any]) -> Iterator[Piece]:
    for choice in chunk.get("choices") or []:
        delta = choice.get("delta") or {}
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            yield Piece(Part.REASONING, thought)
        if text := delta.get("content"):
            yield Piece(Part.CONTENT, text)
        if reason := choice.get("finish_reason"):
            yield Piece(Part.FINISH, reason)
