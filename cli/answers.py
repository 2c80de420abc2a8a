"""An answer of `/v1/chat/completions` as it streams in: pieces of thought, pieces of text, an end."""

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
    """What a piece belongs to."""

    REASONING = auto()
    CONTENT = auto()
    FINISH = auto()  # its text is the reason
    USAGE = auto()


@dataclass(frozen=True, slots=True)
class Piece:
    part: Part
    text: str = ""
    usage: Mapping[str, Any] | None = None  # tokens, as the engine has counted them


def stream_answer(server: Server, body: dict[str, Any]) -> Generator[Piece]:
    """The answer's pieces; closing the iterator closes the connection, and so ends the answer.

    Raises CliError, also where the stream tells of an error or ends before its time.
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
    raise CliError("the answer broke off", ExitCode.REFUSED, next_step="`berth logs NAME` may say why")


class _Halves:
    """Joins the halves of a character that JSON writes as two, should they come in two pieces."""

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
    if usage := chunk.get("usage"):
        yield Piece(Part.USAGE, usage=usage)
