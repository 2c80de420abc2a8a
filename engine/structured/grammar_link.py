"""The engine's connection to one grammar's process. The event loop compiles; the engine's thread gets masks.

The process ends with the last reference to this object, or by itself if it uses too much processor time.
"""

from __future__ import annotations

import asyncio
import json
import math
import mmap
import os
import select
import socket
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, NamedTuple

from engine.errors import EngineError, GenerationFailed, InvalidRequest
from engine.structured.spec import StructuredOutput
from engine.structured.wire import (
    FINAL_REPLY,
    LENGTH,
    MAX_SEQUENCES,
    REPLY,
    REQUEST,
    Limits,
    MaskStatus,
    RequestKind,
    pack,
    too_large,
    too_slow,
)
from engine.structured.workers import Fork, Workers, shared_memory

_SHORTEST_WAIT_S = 0.0005  # poll's unit is a millisecond
_SENT_TOGETHER = 16  # requests: each message wakes a process
_ENDED = "The process that follows this grammar has ended"
_MAX_REPLY_BYTES = REPLY.size + 500


class MaskReply(NamedTuple):
    """A reply of the process."""

    status: MaskStatus
    has_ended: bool
    text: str

    def error(self, param: str) -> EngineError:
        """The error of a failed reply; `param`: the field with the grammar."""
        if self.status == MaskStatus.REFUSED:
            return InvalidRequest(self.text, param=param)
        return GenerationFailed(self.text)


class GrammarLink:
    def __init__(self, workers: Workers, vocab_size: int, limits: Limits) -> None:
        """Starts the process. Raises EngineError."""
        self._limits = limits
        self._num_words = -(-vocab_size // 32)
        self._link, theirs = socket.socketpair()
        self._close = weakref.finalize(self, self._link.close)
        self._link.setblocking(False)
        num_bytes = MAX_SEQUENCES * self._num_words * 4
        descriptor = shared_memory(num_bytes)
        try:
            with theirs:
                self._masks = mmap.mmap(descriptor, num_bytes)
                self._fork: Fork = workers.fork(theirs, descriptor)
        finally:
            os.close(descriptor)
        self._words = memoryview(self._masks).cast("i")
        self._rows: Any = None  # the same as an array
        self.param = ""  # the field with the grammar
        self.pid = 0  # set once it has compiled
        self._free_rows = list(range(MAX_SEQUENCES))
        self._closed_rows: deque[int] = deque()  # of sequences that have ended; any thread may append
        self._num_requests = 0
        self._open: set[int] = set()  # requests whose reply is still wanted
        self._replies: dict[int, MaskReply] = {}
        self._outgoing = bytearray()
        self._incoming = bytearray()
        self._failure: MaskReply | None = None

    @property
    def is_alive(self) -> bool:
        """Whether its process is running; safe in any thread."""
        if self._failure is not None:
            return False
        try:
            return bool(self._link.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    # Compiling

    async def compile(self, wanted: StructuredOutput, on_slow: Callable[[], None]) -> dict[str, Any]:
        """The process's reply; calls `on_slow` if compiling is slow. Raises EOFError if the process ends."""
        loop = asyncio.get_running_loop()
        self.param = wanted.param
        try:
            request = pack({"wanted": asdict(wanted), "limits": asdict(self._limits)})
            await loop.sock_sendall(self._link, request)
            while (reply := await self._read_frame(loop)).get("is_slow"):
                on_slow()
        except ConnectionError as error:
            raise EOFError from error
        self.pid = reply.get("pid", 0)
        return reply

    async def _read_frame(self, loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
        (length,) = LENGTH.unpack(await self._read(loop, LENGTH.size))
        frame: dict[str, Any] = json.loads(await self._read(loop, length))
        return frame

    async def _read(self, loop: asyncio.AbstractEventLoop, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                part = await loop.sock_recv(self._link, size - len(data))
            except ConnectionError as error:
                raise EOFError from error
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def end(self, why: str) -> None:
        """Kill the process; sequences that still follow it fail with `why`.

        The socket is closed with this object, not before.
        """
        self._fail(why)
        self._fork.kill()

    # Asking, by the engine's thread

    def _fail(self, why: str, status: MaskStatus = MaskStatus.REFUSED) -> None:
        self._failure = self._failure or MaskReply(status, False, why)

    def open(self) -> tuple[int, int]:
        """Begin a sequence: returns its row, and the number of the request for its first mask."""
        self._reclaim_rows()
        if not self._free_rows:
            raise GenerationFailed(f"At most {MAX_SEQUENCES} outputs can follow one grammar at a time.")
        row = self._free_rows.pop()
        return row, self.ask(RequestKind.OPEN, row)

    def close_row(self, row: int, number: int) -> None:
        """End a row's sequence. Safe in any thread, as the garbage collector may call it."""
        self._closed_rows.append(row)
        self._open.discard(number)
        self._replies.pop(number, None)

    def ask(self, kind: RequestKind, row: int, token: int = 0) -> int:
        """Report an event and request the next mask. Returns the request's number.

        The request is sent together with later ones, at the latest when `wait` is called.
        """
        self._num_requests += 1
        self._open.add(self._num_requests)
        self._outgoing += REQUEST.pack(kind, row, self._num_requests, token)
        if len(self._outgoing) >= _SENT_TOGETHER * REQUEST.size:
            self._flush()
        return self._num_requests

    def wait(self, number: int, timeout_s: float) -> bool:
        """Whether `answer` has a reply; waits at most `timeout_s` for it."""
        deadline = time.monotonic() + timeout_s
        poll = None
        while number not in self._replies and self._failure is None:
            self._flush()
            self._receive()
            if number in self._replies:
                break
            left = deadline - time.monotonic()
            if left < _SHORTEST_WAIT_S:
                return False
            if poll is None:
                poll = select.poll()
                poll.register(self._link, select.POLLIN)
            poll.poll(math.ceil(left * 1000))
        return True

    def answer(self, number: int) -> MaskReply:
        """The reply to a request. Call it once, after `wait` has returned True."""
        silent = MaskReply(MaskStatus.FAILED, False, "The grammar's process has not answered.")
        return self._replies.pop(number, None) or self._failure or silent

    def check_time(self, requested_at: float) -> None:
        """End the process if it has not answered for too long since `requested_at`: it may be stopped."""
        if time.monotonic() - requested_at > self._limits.wall_s:
            self.end(too_slow(f"its process has not answered within {self._limits.wall_s:g} s"))

    def is_allowed(self, row: int, token: int) -> bool:
        word, bit = divmod(token, 32)
        return bool(self._words[row * self._num_words + word] >> bit & 1)

    def mask(self, row: int) -> Any:
        """An array, int32 [words], which the next request for this row overwrites."""
        if self._rows is None:
            import numpy as np  # slow to import

            self._rows = np.frombuffer(self._masks, np.int32).reshape(MAX_SEQUENCES, -1)
        return self._rows[row]

    def _reclaim_rows(self) -> None:
        with suppress(IndexError):
            while True:
                row = self._closed_rows.popleft()
                self._outgoing += REQUEST.pack(RequestKind.CLOSE, row, 0, 0)
                self._free_rows.append(row)

    def _flush(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: self._link.send(self._outgoing)]
        except BlockingIOError:
            pass  # the process reads more once it has replied
        except OSError:
            self._on_process_end()

    def _receive(self) -> None:
        try:
            while data := self._link.recv(64 * _MAX_REPLY_BYTES):
                self._incoming += data
            self._on_process_end()
        except BlockingIOError:
            pass
        except OSError:
            self._on_process_end()
        self._read_answers()

    def _read_answers(self) -> None:
        while len(self._incoming) >= REPLY.size:
            number, status, has_ended, length = REPLY.unpack_from(self._incoming)
            stop = REPLY.size + length
            if len(self._incoming) < stop:
                return
            text = bytes(self._incoming[REPLY.size : stop]).decode(errors="replace")
            del self._incoming[:stop]
            if number == FINAL_REPLY:
                self._fail(text, MaskStatus(status))
            elif number in self._open:
                self._open.remove(number)
                self._replies[number] = MaskReply(MaskStatus(status), bool(has_ended), text)

    def _on_process_end(self) -> None:
        if self._fork.has_parent:
            self._fail(f"{_ENDED}. Perhaps it {too_large('follow')}")
        else:
            self._fail(f"{_ENDED}, like all others: try again.", MaskStatus.FAILED)
