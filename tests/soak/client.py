"""One request and what became of it, every piece of its answer checked."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import httpx

from tests.soak.requests import Ask

ANSWER_TIMEOUT_S = 180.0  # without its end for so long, a request counts as lost


class Outcome(Enum):
    """How a request ended for its client."""

    ANSWERED = "answered"
    LEFT = "left"  # on purpose
    FAILED = "failed"


class Trouble(Enum):
    """What kept a request from being answered."""

    STATUS = "status"  # an answer that says why, by its status
    EVENT = "event"  # an answer that had begun, and then an error
    WIRE = "wire"  # the connection broke
    UNREACHED = "unreached"  # nobody listened
    SILENCE = "silence"  # no end within the time
    WRONG = "wrong"  # it isn't what was asked for


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an ask, or of one attempt. `wait_s`: until its first token, unstreamed until its end."""

    ask: Ask
    outcome: Outcome
    wait_s: float
    problem: str = ""
    trouble: Trouble | None = None  # of those that failed
    status: int = 0  # 0 = no head came
    code: str = ""  # of an error in OpenAI's envelope; empty = there was no such error
    client: int = 0
    began: float = 0.0  # monotonic seconds
    ended: float = 0.0
    is_retry: bool = False


class NotAnswered(Exception):
    """Something else came than what was asked for."""

    def __init__(self, problem: str, trouble: Trouble = Trouble.WRONG, body: str = "") -> None:
        super().__init__(problem)
        self.trouble = trouble
        self.code = code_of(body)


def code_of(body: str) -> str:
    """That of an error in OpenAI's envelope which says what was wrong; else nothing."""
    try:
        error = json.loads(body)["error"]
        return str(error["code"] or error["type"]) if error["message"] and error["type"] else ""
    except (ValueError, KeyError, TypeError):
        return ""


async def send(
    http: httpx.AsyncClient, ask: Ask, key: str = "", timeout_s: float = ANSWER_TIMEOUT_S
) -> Answer:
    """Send it and check every piece of what comes."""
    began = time.monotonic()
    seen = _Seen({"Authorization": f"Bearer {key}"} if key else {})
    outcome, problem, trouble, code = Outcome.FAILED, "", None, ""
    try:
        async with asyncio.timeout(timeout_s) as whole:
            outcome = await (_stream if ask.is_stream else _plain)(http, ask, seen)
    except TimeoutError:
        if whole.expired():
            problem, trouble = f"it did not end within {timeout_s:.0f} s", Trouble.SILENCE
        else:
            outcome = Outcome.LEFT
    except NotAnswered as error:
        problem, trouble, code = str(error), error.trouble, error.code
    except httpx.HTTPError as error:
        problem, trouble = repr(error), _trouble_of(error)
    ended = time.monotonic()
    wait_s = (seen.first_at or ended) - began
    return Answer(ask, outcome, wait_s, problem, trouble, seen.status, code, began=began, ended=ended)


def _trouble_of(error: httpx.HTTPError) -> Trouble:
    if isinstance(error, httpx.ConnectError):
        return Trouble.UNREACHED
    return Trouble.SILENCE if isinstance(error, httpx.TimeoutException) else Trouble.WIRE


@dataclass(slots=True)
class _Seen:
    """What has come of an answer so far."""

    headers: dict[str, str]  # of the request
    status: int = 0
    first_at: float = 0.0


async def _plain(http: httpx.AsyncClient, ask: Ask, seen: _Seen) -> Outcome:
    async with asyncio.timeout(ask.patience_s):
        response = await http.post(ask.path, json=ask.body(), headers=seen.headers)
    seen.first_at, seen.status = time.monotonic(), response.status_code
    if response.status_code != 200:
        raise _refusal(response.status_code, response.text)
    answer = response.json()
    _check_piece(ask, answer)
    _check_usage(ask, answer)
    if answer["choices"][0]["finish_reason"] != "length":
        raise NotAnswered(f"it ended otherwise than by its length: {answer}")
    return Outcome.ANSWERED


async def _stream(http: httpx.AsyncClient, ask: Ask, seen: _Seen) -> Outcome:
    async with http.stream("POST", ask.path, json=ask.body(), headers=seen.headers) as response:
        seen.status = response.status_code
        if response.status_code != 200:
            raise _refusal(response.status_code, (await response.aread()).decode())
        pieces = _data_lines(response)
        async with asyncio.timeout(ask.patience_s):
            last = await anext(pieces, "")
        seen.first_at = time.monotonic()
        usage: dict[str, Any] | None = None
        number = 0
        while last not in ("", "[DONE]"):
            piece = json.loads(last)
            _check_piece(ask, piece)
            usage = piece if piece.get("usage") else usage
            number += 1
            if ask.leaves_after == number:
                return Outcome.LEFT
            last = await anext(pieces, "")
        if last != "[DONE]" or await anext(pieces, ""):
            raise NotAnswered(f"the stream of {number} pieces did not end with [DONE] but with {last!r}")
    _check_usage(ask, usage or {})
    return Outcome.ANSWERED


def _refusal(status: int, body: str) -> NotAnswered:
    return NotAnswered(f"{status} {body[:500]}", Trouble.STATUS, body)


async def _data_lines(response: httpx.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            yield line.removeprefix("data:").strip()


def _check_piece(ask: Ask, piece: dict[str, Any]) -> None:
    if "error" in piece:
        raise NotAnswered(f"an error in the answer: {piece}", Trouble.EVENT, json.dumps(piece))
    if piece["model"] != ask.model:
        raise NotAnswered(f"{ask.model} was asked for, and {piece['model']} has answered: {piece}")


def _check_usage(ask: Ask, piece: dict[str, Any]) -> None:
    counted = (piece.get("usage") or {}).get("completion_tokens")
    if counted != ask.max_tokens:
        raise NotAnswered(f"{ask.max_tokens} tokens were asked for, and {counted} have come: {piece}")
