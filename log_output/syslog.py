"""Syslog over UDP, TCP or a Unix socket: Berth's JSON lines in RFC 5424 format.

The standard library's handler isn't used: it has the older format, doesn't terminate messages over TCP,
doesn't reconnect, and connects without a time-out.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from datetime import UTC, datetime
from logging.handlers import SysLogHandler

from configs.syslog_address import SyslogAddress

_TIMEOUT_S = 5.0
_MAX_DATAGRAM_BYTES = 60_000  # fits into a datagram everywhere; longer messages are truncated
_SEVERITIES = {"CRITICAL": 2, "ERROR": 3, "WARNING": 4, "INFO": 6, "DEBUG": 7}


class SyslogSink:
    """A LogSink. Over TCP, messages end with a line feed, which JSON never contains (RFC 6587, 3.4.2)."""

    def __init__(self, address: SyslogAddress, formatter: logging.Formatter) -> None:
        self._address = address
        self._formatter = formatter
        self._socket: socket.socket | None = None
        self._is_stream = False
        self._host = socket.gethostname() or "-"

    def send(self, records: list[logging.LogRecord]) -> int:
        """Raises OSError if the server is away; some lines may have been sent, and all will be resent."""
        messages = [self._message(record) for record in records]
        try:
            sender = self._connected()
            if self._is_stream:
                sender.sendall(b"".join(message + b"\n" for message in messages))
            else:
                for message in messages:
                    sender.send(message[:_MAX_DATAGRAM_BYTES])
        except OSError:
            self.close()
            raise
        return 0

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _message(self, record: logging.LogRecord) -> bytes:
        severity = _SEVERITIES.get(record.levelname, 6)
        priority = SysLogHandler.LOG_DAEMON << 3 | severity
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        head = f"<{priority}>1 {time} {self._host} berth {os.getpid()} - - "
        return (head + self._formatter.format(record)).encode("utf-8", "replace")

    def _connected(self) -> socket.socket:
        if self._socket is not None and self._is_stream and _has_ended(self._socket):
            self.close()
        if self._socket is None:
            self._socket = self._connect()
            self._is_stream = self._socket.type == socket.SOCK_STREAM
        return self._socket

    def _connect(self) -> socket.socket:
        address = self._address
        if address.scheme == "tcp":
            return socket.create_connection((address.host, address.port), _TIMEOUT_S)
        if address.scheme == "unix":
            return _connect_unix(address.path)
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_DGRAM
        )[0]
        return _connected_to(socket.socket(family, kind, protocol), where)


def _connect_unix(path: str) -> socket.socket:
    """Daemons use either kind of socket; try the usual one first."""
    try:
        return _connected_to(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), path)
    except OSError as error:
        if error.errno != errno.EPROTOTYPE:
            raise
        return _connected_to(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path)


def _connected_to(new: socket.socket, where: object) -> socket.socket:
    try:
        new.settimeout(_TIMEOUT_S)
        new.connect(where)  # type: ignore[arg-type]
    except OSError:
        new.close()
        raise
    return new


def _has_ended(connection: socket.socket) -> bool:
    """Whether the peer has closed: lines sent after that would be lost silently."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(_TIMEOUT_S)
