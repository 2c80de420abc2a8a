"""Sends log lines to another machine from a queue and a thread; a full queue drops and counts lines.

Logging never waits for the network. The destination (log_output/syslog.py, log_output/otlp.py) is a
`LogSink`; while it is away, lines wait in the queue.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import queue
import threading
import time
from typing import Protocol

MAX_QUEUED = 10_000
_MAX_BATCH = 500
_RETRY_FIRST_S, _RETRY_MAX_S = 0.5, 30.0
# Loggers of the sinks' libraries: their errors about a sink must not be sent to it.
_OWN_LOGGERS = ("opentelemetry", "requests", "urllib3", "berth.remote_logs")

logger = logging.getLogger("berth.remote_logs")


class LogSink(Protocol):
    """A destination for lines. Called by one thread, which it may block for some seconds."""

    def send(self, records: list[logging.LogRecord]) -> int:
        """Send the lines; returns how many were lost for good. Raises OSError if all may be resent later."""

    def close(self) -> None:
        """Close all connections. Raises nothing."""


class RemoteLogs(logging.Handler):
    """The logging handler in front of one sink."""

    def __init__(self, sink: LogSink, name: str, *, max_queued: int = MAX_QUEUED) -> None:
        """`name`: the sink's name in Berth's own log, as an operator knows it."""
        super().__init__()
        self._sink = sink
        self._name = name
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(max_queued)
        self._closing = threading.Event()
        self._count_lock = threading.Lock()
        self.num_dropped = 0  # and not yet reported
        self._thread = threading.Thread(target=self._run, name="berth-remote-logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put a line into the queue, or drop it if the queue is full."""
        if record.name.startswith(_OWN_LOGGERS):
            return
        record = copy.copy(record)
        record.msg, record.args = record.getMessage(), None  # formatted now, as the arguments may change
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._count_dropped(1)

    def finish(self, timeout_s: float = 3.0) -> None:
        """Send the rest for at most `timeout_s`; after that, no more lines are accepted."""
        self._closing.set()
        with contextlib.suppress(queue.Full):  # then the thread is busy and checks `_closing`
            self._queue.put_nowait(None)
        self._thread.join(timeout_s)

    def _count_dropped(self, number: int) -> None:
        with self._count_lock:
            self.num_dropped += number

    # The thread's side

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._next_batch()
            try:
                is_open = self._deliver(batch) and is_open
            except Exception:  # the thread's root: a line that can't be sent must not block all others
                logger.exception("%s: %d log lines are lost", self._name, len(batch))
        self._sink.close()

    def _next_batch(self) -> tuple[list[logging.LogRecord], bool]:
        """Wait for lines; returns those queued, and whether more may come."""
        batch: list[logging.LogRecord] = []
        try:
            record = self._queue.get()
            while record is not None:
                batch.append(record)
                if len(batch) == _MAX_BATCH:
                    return batch, True
                record = self._queue.get_nowait()
        except queue.Empty:
            return batch, not self._closing.is_set()
        return batch, False

    def _deliver(self, batch: list[logging.LogRecord]) -> bool:
        """Send a batch, retrying as needed; False if that failed until the shutdown."""
        if not batch:
            return True
        batch = [*self._notice(), *batch]
        since, wait_s = time.monotonic(), _RETRY_FIRST_S
        is_away = False
        while True:
            try:
                self._count_dropped(self._sink.send(batch))
            except OSError as error:
                if not is_away:
                    is_away = True
                    limit = self._queue.maxsize
                    logger.warning("%s: %s; up to %d log lines are queued", self._name, error, limit)
                if self._closing.wait(wait_s):
                    return False
                wait_s = min(2 * wait_s, _RETRY_MAX_S)
            else:
                if is_away:
                    logger.warning("%s: back after %.0f s", self._name, time.monotonic() - since)
                return True

    def _notice(self) -> list[logging.LogRecord]:
        """A line that reports how many others were dropped, if any were."""
        number = self.num_dropped
        if not number:
            return []
        self._count_dropped(-number)
        text = f"{number} log lines were dropped: {self._name} was away or too slow"
        logger.warning(text)
        return [logging.LogRecord(logger.name, logging.WARNING, __file__, 0, text, None, None)]
