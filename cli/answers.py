"""A streamed response of `/v1/chat/completions`: pieces of reasoning, pieces of text, an end."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from cli.errors import CliError, ExitCode
from cli.refusals import refusal_in_stream
from cli.server import Server

PATH = "/v1/chat/completions"
_DONE = "[DONE]"


class Part(Enum):
    """The kind of a piece."""

    REASONING = auto()
    CONTENT = auto()
    FINISH = auto()  # its text is the finish reason
    USAGE = auto()


@dataclass(frozen=True, slots=True)
class Piece:
    part: Part
    text: str = ""
    usage: Mapping[str, Any] | None = None  # tokens, as counted by the engine


def stream_answer(server: Server, body: dict[str, Any]) -> Generator[Piece]:
    """The response's pieces; closing the iterator closes the connection and thus ends the response.

    Raises CliError, also if the stream reports an error or breaks off.
    """
    halves = {Part.REASONING: _Halves(), Part.CONTENT: _Halves()}
    with server.stream("POST", PATH, body=body) as response:
        for event in server.events(response):
            if event.data == _DONE:
                yield from _rest(halves)
                return
            for piece in _pieces(_parsed(event.data)):
                whole = halves[piece.part].joined(piece.text) if piece.part in halves else piece.text
                if whole or piece.part not in halves:
                    yield replace(piece, text=whole)
    raise CliError("the response broke off", ExitCode.REFUSED, next_step="`berth logs NAME` may show why")


class _Halves:
    """Joins the two halves of a surrogate pair if they arrive in different pieces."""

    def __init__(self) -> None:
        self._first = ""

    def joined(self, text: str, *, is_last: bool = False) -> str:
        text = self._first + text
        self._first = text[-1] if text[-1:] and "\ud800" <= text[-1] <= "\udbff" and not is_last else ""
        whole = text.removesuffix(self._first)
        return whole.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _rest(halves: Mapping[Part, _Halves]) -> Iterator[Piece]:
    for part, half in halves.items():
        if rest := half.joined("", is_last=True):
            yield Piece(part, rest)


def _parsed(data: str) -> Any:
    try:
        chunk = json.loads(data)
    except ValueError:
        raise CliError(f"the response has a piece that isn't JSON: {data[:80]!r}", ExitCode.REFUSED) from None
    if error := refusal_in_stream(chunk):
        raise error
    return chunk


def _pieces(chunk: dict[str, Any]) -> Iterator[Piece]:
    for choice in chunk.get("choices") or []:
        delta = choice.get("delta") or {}
        if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
            yield Piece(Part.REASONING, reasoning)
        if text := delta.get("content"):
            yield Piece(Part.CONTENT, text)
        if reason := choice.get("finish_reason"):
            yield Piece(Part.FINISH, reason)
    if usage := chunk.get("usage"):
        yield Piece(Part.USAGE, usage=usage)
