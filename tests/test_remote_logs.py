"""Log lines sent to other machines: real sockets, servers that disappear and return, full queues."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from configs.syslog_address import SyslogAddress
from log_output.json_format import JsonFormatter
from log_output.otlp import OtlpSink
from log_output.remote_logs import LogSink, RemoteLogs
from log_output.setup import RateLimitFilter
from log_output.syslog import SyslogSink
from tests.collector import Collector

FRAME = re.compile(r"<(\d+)>1 (\d{4}-\d\d-\d\dT[\d:.]+\+00:00) (\S+) berth (\d+) - - (\{.*\})\Z", re.DOTALL)
TIMEOUT_S = 20.0


@contextmanager
def logging_to(sink: LogSink, **options: Any) -> Iterator[tuple[logging.Logger, RemoteLogs]]:
    """A separate logger, so that no other lines interfere."""
    handler = RemoteLogs(sink, "the sink", **options)
    log = logging.Logger("berth.test")
    log.addHandler(handler)
    try:
        yield log, handler
    finally:
        handler.finish()


def syslog(address: str) -> SyslogSink:
    return SyslogSink(SyslogAddress.parse(address), JsonFormatter())


def fields(message: bytes) -> dict[str, Any]:
    found = FRAME.match(message.decode())
    assert found is not None, message
    return {"priority": int(found[1]), **json.loads(found[5])}


def listening(kind: socket.SocketKind, where: Any = ("127.0.0.1", 0)) -> socket.socket:
    server = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET, kind)
    server.settimeout(TIMEOUT_S)
    if not isinstance(where, str):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(where)
    if kind == socket.SOCK_STREAM:
        server.listen()
    return server


def read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = connection.recv(1)
        assert piece, "the connection has ended"
        line += piece
    return line.removesuffix(b"\n")


def test_over_udp_each_line_is_a_message_in_syslog_s_frame() -> None:
    with listening(socket.SOCK_DGRAM) as server:
        port = server.getsockname()[1]
        with logging_to(syslog(f"udp://127.0.0.1:{port}")) as (log, _):
            log.warning("%s – %d", "text", 1, extra={"instance": "one"})
            try:
                raise ValueError("what went wrong")
            except ValueError:
                log.exception("it failed")
            log.info("x" * 70_000)
            first, second = fields(server.recv(65536)), fields(server.recv(65536))
            cut = server.recv(65536)
    assert (first["message"], first["instance"], first["level"]) == ("text – 1", "one", "warning")
    assert (first["priority"], second["priority"]) == (3 * 8 + 4, 3 * 8 + 3)  # daemon; warning, error
    assert "ValueError: what went wrong" in second["exception"]
    assert len(cut) == 60_000


def test_over_tcp_lines_survive_an_outage_of_the_server() -> None:
    """Its connection ends, it is away, it returns: each line arrives once, in order."""
    server = listening(socket.SOCK_STREAM)
    address = server.getsockname()
    with logging_to(syslog(f"tcp://127.0.0.1:{address[1]}")) as (log, _):
        log.info("one")
        connection, _ = server.accept()
        assert fields(read_line(connection))["message"] == "one"
        server.close()
        connection.close()
        for word in ("two", "three\nfour"):
            log.info(word)
        with listening(socket.SOCK_STREAM, address) as server:
            connection, _ = server.accept()
            connection.settimeout(TIMEOUT_S)
            with connection:
                for word in ("two", "three\nfour"):
                    assert fields(read_line(connection))["message"] == word


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
@pytest.mark.parametrize("prefix", ["", "unix://"])
def test_over_a_unix_socket(tmp_path: Path, kind: socket.SocketKind, prefix: str) -> None:
    path = str(tmp_path / "log")
    with listening(kind, path) as server, logging_to(syslog(prefix + path)) as (log, _):
        log.info("here")
        if kind == socket.SOCK_STREAM:
            connection, _ = server.accept()
            with connection:
                message = read_line(connection)
        else:
            message = server.recv(65536)
    assert fields(message)["message"] == "here"


@pytest.mark.parametrize(
    "address", ["localhost:514", "udp://", "http://x:1", "unix://relative", "udp://h:99999", "udp://h/x", ""]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"must be udp://|[Pp]ort"):
        SyslogAddress.parse(address)


def test_the_default_port_is_514() -> None:
    assert SyslogAddress.parse("udp://[::1]") == SyslogAddress("udp", "::1", 514)


class SlowSink:
    """Stands for a server that accepts nothing for a while; a real server's buffers would take the lines."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.is_sending = threading.Event()
        self.messages: list[str] = []

    def send(self, records: list[logging.LogRecord]) -> int:
        self.is_sending.set()
        self.may_go_on.wait(TIMEOUT_S)
        self.messages += [record.getMessage() for record in records]
        return 0

    def close(self) -> None:
        pass


def test_excess_lines_are_dropped_and_their_number_logged(caplog: pytest.LogCaptureFixture) -> None:
    sink = SlowSink()
    with logging_to(sink, max_queued=10) as (log, handler):
        log.info("the first")
        assert sink.is_sending.wait(TIMEOUT_S)
        begun = time.perf_counter()
        for number in range(1000):
            log.info("line %d", number)
        assert time.perf_counter() - begun < 1.0  # logging didn't block
        assert handler.num_dropped == 990
        sink.may_go_on.set()
        wait_until(lambda: "line 9" in sink.messages)
    report = "990 log lines were dropped: the sink was away or too slow"
    assert sink.messages == ["the first", report, *(f"line {number}" for number in range(10))]
    assert report in caplog.messages


def test_the_shutdown_does_not_wait_for_the_server() -> None:
    with listening(socket.SOCK_STREAM) as gone:
        port = gone.getsockname()[1]
    with logging_to(syslog(f"tcp://127.0.0.1:{port}")) as (log, handler):
        for _ in range(20_000):
            log.info("lost")
        begun = time.monotonic()
        handler.finish()
        assert time.monotonic() - begun < 3.5


def test_the_last_lines_are_sent_at_shutdown() -> None:
    with listening(socket.SOCK_DGRAM) as server:
        with logging_to(syslog(f"udp://127.0.0.1:{server.getsockname()[1]}")) as (log, _):
            for number in range(100):
                log.info("%d", number)
        assert [fields(server.recv(65536))["message"] for _ in range(100)] == [str(n) for n in range(100)]


def test_a_line_that_cannot_be_encoded_does_not_stop_the_sender(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    server = listening(socket.SOCK_DGRAM)
    with server, logging_to(syslog(f"udp://127.0.0.1:{server.getsockname()[1]}")) as (log, _):
        log.info("bad", extra={"field": Broken()})
        wait_until(lambda: any("1 log lines are lost" in text for text in caplog.messages))
        log.info("good")
        assert fields(server.recv(65536))["message"] == "good"


def test_otlp_has_the_message_as_body_and_the_fields_as_attributes() -> None:
    with Collector().running() as collector:
        with logging_to(OtlpSink(f"{collector.url}/", "harbour", "1.2")) as (log, _):
            log.warning("%d lines", 3, extra={"status": 200, "seconds": 0.5, "folder": Path("/x")})
            try:
                raise ValueError("what went wrong")
            except ValueError:
                log.exception("it failed")
        collector.wait_for(lambda: len(collector.log_records) == 2)
    first, second = collector.log_records
    assert (first["logger"], first["severity"], first["body"]) == ("berth.test", "WARN", "3 lines")
    assert first["attributes"] == {"status": 200, "seconds": 0.5, "folder": "/x"}
    assert second["attributes"]["exception.type"] == "ValueError"
    assert "what went wrong" in second["attributes"]["exception.stacktrace"]
    assert collector.resources[0].items() >= {"service.name": "harbour", "service.version": "1.2"}.items()


def test_lines_that_a_collector_refuses_count_as_lost(caplog: pytest.LogCaptureFixture) -> None:
    with Collector().running() as collector:
        collector.status = 400
        with logging_to(OtlpSink(collector.url, "harbour", "1.2")) as (log, handler):
            log.info("refused")
            wait_until(lambda: handler.num_dropped == 1)
            collector.status = 200
            log.info("taken")
            collector.wait_for(lambda: len(collector.log_records) == 2)
    report, accepted = (record["body"] for record in collector.log_records)
    assert report.startswith("1 log lines were dropped") and accepted == "taken"


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_librarys_repeated_line_is_logged_once_a_minute() -> None:
    few = RateLimitFilter()

    def is_said(name: str, text: str, at: float) -> bool:
        record = logging.LogRecord(name, logging.WARNING, __file__, 0, text, (at,), None)
        record.created = at
        return few.filter(record)

    assert [is_said("opentelemetry.exporter", "away since %s", at) for at in (0, 1, 59, 60, 61)] == [
        True, False, False, True, False,
    ]  # fmt: skip
    assert is_said("opentelemetry.exporter", "something else", 61)
    assert is_said("berth", "away", 61) and is_said("berth", "away", 61)
