"""The engine's end of one grammar's process. The event loop has it compile, the engine's thread asks it then.

The process ends with the last reference to this object, or of itself where it takes too much processor time.
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
    ANSWER,
    ASK,
    FAREWELL,
    LENGTH,
    MAX_SEQUENCES,
    Answer,
    Ask,
    Limits,
    pack,
    too_large,
    too_slow,
)
from engine.structured.workers import Fork, Workers, shared_memory

_SHORTEST_WAIT_S = 0.0005  # a poll takes whole milliseconds
_SENT_TOGETHER = 16  # questions: each message wakes a process
_ENDED = "The process that follows this grammar has ended"
_LONGEST_ANSWER = ANSWER.size + 500


class Said(NamedTuple):
    """An answer of the process."""

    what: Answer
    has_ended: bool
    text: str

    def error(self, param: str) -> EngineError:
        """Of one that failed; `param`: the field that the grammar came in."""
        if self.what == Answer.REFUSED:
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
        self.param = ""  # the field that the grammar came in
        self.pid = 0  # once it has compiled
        self._free_rows = list(range(MAX_SEQUENCES))
        self._closed_rows: deque[int] = deque()  # of sequences that have ended; by any thread
        self._num_asked = 0
        self._open: set[int] = set()  # questions that somebody will want the answer of
        self._answers: dict[int, Said] = {}
        self._outgoing = bytearray()
        self._incoming = bytearray()
        self._failure: Said | None = None

    @property
    def is_alive(self) -> bool:
        """Whether its process goes on; any thread may ask."""
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
        """What it says of the grammar; `on_slow` is called if it takes long. Raises EOFError if it ends."""
        loop = asyncio.get_running_loop()
        self.param = wanted.param
        try:
            asked = pack({"wanted": asdict(wanted), "limits": asdict(self._limits)})
            await loop.sock_sendall(self._link, asked)
            while (said := await self._read_frame(loop)).get("is_slow"):
                on_slow()
        except ConnectionError as error:
            raise EOFError from error
        self.pid = said.get("pid", 0)
        return said

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
        """Whoever still follows it hears why. Its descriptor is closed with this object, not before."""
        self._fail(why)
        self._fork.kill()

    # Asking, by the engine's thread

    def _fail(self, why: str, what: Answer = Answer.REFUSED) -> None:
        self._failure = self._failure or Said(what, False, why)

    def open(self) -> tuple[int, int]:
        """A sequence begins: its row, and the number of the question what may come first."""
        self._take_back_rows()
        if not self._free_rows:
            raise GenerationFailed(f"More than {MAX_SEQUENCES} outputs follow one grammar at a time.")
        row = self._free_rows.pop()
        return row, self.ask(Ask.OPEN, row)

    def close_row(self, row: int, number: int) -> None:
        """Its sequence has ended. Any thread may say so: the garbage collector's."""
        self._closed_rows.append(row)
        self._open.discard(number)
        self._answers.pop(number, None)

    def ask(self, what: Ask, row: int, token: int = 0) -> int:
        """The number of the question what may come next, now that this has happened.

        It is sent with the next ones, at the latest when somebody waits.
        """
        self._num_asked += 1
        self._open.add(self._num_asked)
        self._outgoing += ASK.pack(what, row, self._num_asked, token)
        if len(self._outgoing) >= _SENT_TOGETHER * ASK.size:
            self._flush()
        return self._num_asked

    def wait(self, number: int, timeout_s: float) -> bool:
        """Whether `answer` has something to say, after waiting at most so long."""
        deadline = time.monotonic() + timeout_s
        poll = None
        while number not in self._answers and self._failure is None:
            self._flush()
            self._receive()
            if number in self._answers:
                break
            left = deadline - time.monotonic()
            if left < _SHORTEST_WAIT_S:
                return False
            if poll is None:
                poll = select.poll()
                poll.register(self._link, select.POLLIN)
            poll.poll(math.ceil(left * 1000))
        return True

    def answer(self, number: int) -> Said:
        """Once, when `wait` says so."""
        silent = Said(Answer.FAILED, False, "The grammar's process has not answered.")
        return self._answers.pop(number, None) or self._failure or silent

    def check_time(self, asked: float) -> None:
        """Ends the process if what was asked for at `asked` isn't answered by now: it may not even run."""
        if time.monotonic() - asked > self._limits.wall_s:
            self.end(too_slow(f"its process has not answered within {self._limits.wall_s:g} s"))

    def is_allowed(self, row: int, token: int) -> bool:
        word, bit = divmod(token, 32)
        return bool(self._words[row * self._num_words + word] >> bit & 1)

    def mask(self, row: int) -> Any:
        """An array, int32 [words], that the next question about this row overwrites."""
        if self._rows is None:
            import numpy as np  # slow to import

            self._rows = np.frombuffer(self._masks, np.int32).reshape(MAX_SEQUENCES, -1)
        return self._rows[row]

    def _take_back_rows(self) -> None:
        with suppress(IndexError):
            while True:
                row = self._closed_rows.popleft()
                self._outgoing += ASK.pack(Ask.CLOSE, row, 0, 0)
                self._free_rows.append(row)

    def _flush(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: self._link.send(self._outgoing)]
        except BlockingIOError:
            pass  # it reads on when it has answered
        except OSError:
            self._has_gone()

    def _receive(self) -> None:
        try:
            while data := self._link.recv(64 * _LONGEST_ANSWER):
                self._incoming += data
            self._has_gone()
        except BlockingIOError:
            pass
        except OSError:
            self._has_gone()
        self._read_answers()

    def _read_answers(self) -> None:
        while len(self._incoming) >= ANSWER.size:
            number, what, has_ended, length = ANSWER.unpack_from(self._incoming)
            stop = ANSWER.size + length
            if len(self._incoming) < stop:
                return
            text = bytes(self._incoming[ANSWER.size : stop]).decode(errors="replace")
            del self._incoming[:stop]
            if number == FAREWELL:
                self._fail(text, Answer(what))
            elif number in self._open:
                self._open.remove(number)
                self._answers[number] = Said(Answer(what), bool(has_ended), text)

    def _has_gone(self) -> None:
        if self._fork.has_parent:
            self._fail(f"{_ENDED}. It may be that it {too_large('follow')}")
        else:
            self._fail(f"{_ENDED}, as all of them have: try again.", Answer.FAILED)
