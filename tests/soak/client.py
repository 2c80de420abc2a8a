"""Sends one request and checks every chunk of its response."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import httpx

from tests.soak.requests import Request

REQUEST_TIMEOUT_S = 180.0  # a request without an end after this time counts as lost


class Outcome(Enum):
    """How a request ended for its client."""

    ANSWERED = "answered"
    LEFT = "left"  # on purpose
    FAILED = "failed"


class FailureKind(Enum):
    """Why a request was not answered."""

    STATUS = "status"  # an error response
    EVENT = "event"  # an error after the response had begun
    WIRE = "wire"  # the connection broke
    UNREACHED = "unreached"  # the connection was refused
    SILENCE = "silence"  # a timeout
    WRONG = "wrong"  # an incorrect response


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a request. `wait_s`: until the first token; if not streamed, until the end."""

    request: Request
    outcome: Outcome
    wait_s: float
    problem: str = ""
    failure: FailureKind | None = None  # if it failed
    status: int = 0  # 0 = no response head
    code: str = ""  # of the error in OpenAI's envelope; empty = no such error
    client: int = 0
    began: float = 0.0  # monotonic seconds
    ended: float = 0.0
    is_retry: bool = False


class InvalidResponse(Exception):
    """The response is an error, or not what was requested."""

    def __init__(self, problem: str, failure: FailureKind = FailureKind.WRONG, body: str = "") -> None:
        super().__init__(problem)
        self.failure = failure
        self.code = code_of(body)


def code_of(body: str) -> str:
    """The code of a complete error in OpenAI's envelope; else empty."""
    try:
        error = json.loads(body)["error"]
        return str(error["code"] or error["type"]) if error["message"] and error["type"] else ""
    except (ValueError, KeyError, TypeError):
        return ""


async def send(
    http: httpx.AsyncClient, request: Request, key: str = "", timeout_s: float = REQUEST_TIMEOUT_S
) -> Attempt:
    """Send the request and check every chunk of the response."""
    began = time.monotonic()
    progress = _Progress({"Authorization": f"Bearer {key}"} if key else {})
    outcome, problem, failure, code = Outcome.FAILED, "", None, ""
    try:
        async with asyncio.timeout(timeout_s) as deadline:
            outcome = await (_stream if request.is_stream else _plain)(http, request, progress)
    except TimeoutError:
        if deadline.expired():
            problem, failure = f"it did not end within {timeout_s:.0f} s", FailureKind.SILENCE
        else:
            outcome = Outcome.LEFT
    except InvalidResponse as error:
        problem, failure, code = str(error), error.failure, error.code
    except httpx.HTTPError as error:
        problem, failure = repr(error), _failure_kind(error)
    ended = time.monotonic()
    wait_s = (progress.first_at or ended) - began
    return Attempt(
        request, outcome, wait_s, problem, failure, progress.status, code, began=began, ended=ended
    )


def _failure_kind(error: httpx.HTTPError) -> FailureKind:
    if isinstance(error, httpx.ConnectError):
        return FailureKind.UNREACHED
    return FailureKind.SILENCE if isinstance(error, httpx.TimeoutException) else FailureKind.WIRE


@dataclass(slots=True)
class _Progress:
    """The response so far."""

    headers: dict[str, str]  # of the request
    status: int = 0
    first_at: float = 0.0


async def _plain(http: httpx.AsyncClient, request: Request, progress: _Progress) -> Outcome:
    async with asyncio.timeout(request.first_byte_timeout_s):
        response = await http.post(request.path, json=request.body(), headers=progress.headers)
    progress.first_at, progress.status = time.monotonic(), response.status_code
    if response.status_code != 200:
        raise _refusal(response.status_code, response.text)
    answer = response.json()
    _check_chunk(request, answer)
    _check_usage(request, answer)
    if answer["choices"][0]["finish_reason"] != "length":
        raise InvalidResponse(f"it did not end by its length: {answer}")
    return Outcome.ANSWERED


async def _stream(http: httpx.AsyncClient, request: Request, progress: _Progress) -> Outcome:
    async with http.stream("POST", request.path, json=request.body(), headers=progress.headers) as response:
        progress.status = response.status_code
        if response.status_code != 200:
            raise _refusal(response.status_code, (await response.aread()).decode())
        chunks = _data_lines(response)
        async with asyncio.timeout(request.first_byte_timeout_s):
            last = await anext(chunks, "")
        progress.first_at = time.monotonic()
        usage: dict[str, Any] | None = None
        number = 0
        while last not in ("", "[DONE]"):
            chunk = json.loads(last)
            _check_chunk(request, chunk)
            usage = chunk if chunk.get("usage") else usage
            number += 1
            if request.disconnects_after == number:
                return Outcome.LEFT
            last = await anext(chunks, "")
        rest = await anext(chunks, "")
        if last != "[DONE]" or rest:
            raise InvalidResponse(f"the stream of {number} chunks did not end with [DONE] but with {last!r}")
    _check_usage(request, usage or {})
    return Outcome.ANSWERED


def _refusal(status: int, body: str) -> InvalidResponse:
    return InvalidResponse(f"{status} {body[:500]}", FailureKind.STATUS, body)


async def _data_lines(response: httpx.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            yield line.removeprefix("data:").strip()


def _check_chunk(request: Request, chunk: dict[str, Any]) -> None:
    if "error" in chunk:
        raise InvalidResponse(f"an error in the response: {chunk}", FailureKind.EVENT, json.dumps(chunk))
    if chunk["model"] != request.model:
        raise InvalidResponse(f"{request.model} was requested, but {chunk['model']} answered: {chunk}")


def _check_usage(request: Request, chunk: dict[str, Any]) -> None:
    counted = (chunk.get("usage") or {}).get("completion_tokens")
    if counted != request.max_tokens:
        raise InvalidResponse(f"{request.max_tokens} tokens were requested, but {counted} arrived: {chunk}")
