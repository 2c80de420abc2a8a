"""The engine's end of one grammar's process. The event loop has it compile, the engine's thread asks it then.

The process ends with the last reference to this object, or when it is ended because it takes too long.
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
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]

from engine.errors import EngineError
from engine.structured.spec import StructuredOutput
from engine.structured.wire import ANSWER, ASK, LENGTH, MAX_SEQUENCES, Answer, Ask, pack
from engine.structured.workers import Fork, Workers, shared_memory

SLOW_MASK_S = 0.02  # of processor time; others take a hundredth of that
_SLOW_S = 0.1  # of processor time on slow masks; after that the process leaves the processors to others
_SHORTEST_WAIT_S = 0.0005  # a poll takes whole milliseconds
_SENT_TOGETHER = 16  # questions: each message wakes a process
_CHECK_S = 0.02  # between two looks at how long the process has been busy
_LONGEST_ANSWER = ANSWER.size + 500


TOO_SLOW = "The grammar takes too long to follow"
SIMPLIFY = "Simplify it: counts within counts, and parts that can be read in many ways, cost most."


class GrammarFailed(EngineError):
    """The request that follows this grammar can't go on."""

    code = "generation_failed"


@dataclass(frozen=True, slots=True)
class MaskLimits:
    """For what may come next after one token. Nobody else waits for it, so there is time."""

    processor_s: float = 0.5
    wall_s: float = 30.0  # where the processors are busy


class Said(NamedTuple):
    """An answer of the process."""

    what: Answer
    has_ended: bool
    spent_s: float  # of processor time
    text: str


class GrammarLink:
    def __init__(self, workers: Workers, vocab_size: int, limits: MaskLimits) -> None:
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
        self._process: psutil.Process | None = None
        self._free_rows = list(range(MAX_SEQUENCES))
        self._closed_rows: deque[int] = deque()  # of sequences that have ended; by any thread
        self._num_asked = 0
        self._open: set[int] = set()  # questions that somebody will want the answer of
        self._answers: dict[int, Said] = {}
        self._outgoing = bytearray()
        self._incoming = bytearray()
        self._failure: str | None = None
        self._cpu_at_start: float | None = None  # of what it does now, as far as that was looked at
        self._slow_s = 0.0  # spent on slow masks, of all sequences
        self._next_check = 0.0
        self._is_slow = False

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

    async def started(self) -> None:
        """Returns when it can compile. Raises EOFError if it has ended."""
        if self._process is None:
            said = await self._read_frame(asyncio.get_running_loop())
            with suppress(psutil.Error):  # it will be found to have ended
                self._process = psutil.Process(said["pid"])

    async def compile(self, wanted: StructuredOutput) -> dict[str, Any]:
        """What it says of the grammar. Raises EOFError if it ends before."""
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(self._link, pack(asdict(wanted)))
            return await self._read_frame(loop)
        except ConnectionError as error:
            raise EOFError from error

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

    def slow_compiler(self) -> None:
        """What it compiles leaves the processors to others from now on."""
        self._fork.slow_down(only_compiler=True)

    def end(self, failure: str) -> None:
        """Whoever still follows it hears why. Its descriptor is closed with this object, not before."""
        self._failure = self._failure or failure
        self._fork.kill()

    # Asking, by the engine's thread

    def open(self) -> tuple[int, int]:
        """A sequence begins: its row, and the number of the question what may come first."""
        self._take_back_rows()
        if not self._free_rows:
            raise GrammarFailed(f"More than {MAX_SEQUENCES} outputs follow one grammar at a time.")
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
        """Once, when `wait` says so. Raises GrammarFailed."""
        if number not in self._answers:
            raise GrammarFailed(self._failure or "The grammar's process has not answered.")
        return self._answers.pop(number)

    def check_time(self, asked: float) -> None:
        """Ends the process if what it does now, asked for at `asked`, takes too long."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + _CHECK_S
        spent = self._spent()
        self._slow_down_after(self._slow_s + spent)
        if spent > self._limits.processor_s or now - asked > self._limits.wall_s:
            self.end(self.too_slow)

    @property
    def too_slow(self) -> str:
        seconds = f"{self._limits.processor_s:g} s"
        return f"{TOO_SLOW}: what may come next, after the text so far, took more than {seconds}. {SIMPLIFY}"

    def is_too_slow(self, said: Said) -> bool:
        return said.spent_s > self._limits.processor_s

    def is_allowed(self, row: int, token: int) -> bool:
        word, bit = divmod(token, 32)
        return bool(self._words[row * self._num_words + word] >> bit & 1)

    def mask(self, row: int) -> Any:
        """An array, int32 [words], that the next question about this row overwrites."""
        if self._rows is None:
            import numpy as np  # slow to import

            self._rows = np.frombuffer(self._masks, np.int32).reshape(MAX_SEQUENCES, -1)
        return self._rows[row]

    def _slow_down_after(self, spent_s: float) -> None:
        if spent_s > _SLOW_S and not self._is_slow:
            self._is_slow = True
            self._fork.slow_down()

    def processor_s(self) -> float:
        """What its process has taken, 0 if that can't be told."""
        try:
            times = self._process.cpu_times() if self._process is not None else None
        except psutil.Error:
            times = None
        return 0.0 if times is None else float(times.user + times.system)

    def _spent(self) -> float:
        """Processor time since this question was first looked after."""
        now = self.processor_s()
        if self._cpu_at_start is None:
            self._cpu_at_start = now
        return now - self._cpu_at_start

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
            number, what, has_ended, spent, length = ANSWER.unpack_from(self._incoming)
            stop = ANSWER.size + length
            if len(self._incoming) < stop:
                return
            text = bytes(self._incoming[ANSWER.size : stop]).decode(errors="replace")
            del self._incoming[:stop]
            self._cpu_at_start = None
            if spent / 1e6 > SLOW_MASK_S:
                self._slow_s += spent / 1e6
                self._slow_down_after(self._slow_s)
            if number in self._open:
                self._open.remove(number)
                self._answers[number] = Said(Answer(what), bool(has_ended), spent / 1e6, text)

    def _has_gone(self) -> None:
        self._failure = self._failure or (
            "The process that follows this grammar has ended: it may have needed too much memory."
        )
