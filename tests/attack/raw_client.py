"""A client for arbitrary requests: any target, any head, bodies of a hundred megabytes."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import time
from collections.abc import Mapping

from tests.faults.journal import Reply

JSON = {"content-type": "application/json"}
_CLOSES_WITHIN_S = 0.5
MOST_READ_BYTES = 256 << 20


def ask(
    port: int,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 28.0,
) -> Reply:
    """One request on its own connection; the target is sent unchanged."""
    reply, pieces, num_read = Reply(), list[bytes](), 0
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        length = {} if body is None else {"content-length": str(len(body))}
        for name, value in {**length, **(headers or {})}.items():
            connection.putheader(name, value)
        connection.endheaders()
        with contextlib.suppress(ConnectionError):  # refused; the server reads no more
            connection.sock.sendall(body or b"")
        response = connection.getresponse()
        reply.status = response.status
        reply.headers = {name.lower(): value for name, value in response.getheaders()}
        while piece := response.read1(1 << 20):
            reply.first_byte_s = reply.first_byte_s or time.monotonic() - began
            pieces.append(piece)
            num_read += len(piece)
            if num_read > MOST_READ_BYTES:
                reply.broken = f"more than {MOST_READ_BYTES >> 20} MiB"
                break
    except TimeoutError:
        reply.broken, reply.status = f"nothing for {timeout_s:.0f} s", 0
    except (OSError, http.client.HTTPException) as error:
        reply.broken = repr(error)
    finally:
        connection.close()
    reply.body = b"".join(pieces)
    reply.seconds = time.monotonic() - began
    return reply


def say(connection: socket.socket, data: bytes, timeout_s: float = 10.0) -> tuple[int, bytes, bool]:
    """Send raw bytes; returns the status (0 = no response), all data received, and whether it was closed."""
    connection.settimeout(timeout_s)
    answer, is_closed = b"", False
    try:
        connection.sendall(data)
        while piece := connection.recv(1 << 16):
            answer += piece
            if _is_whole(answer):
                connection.settimeout(_CLOSES_WITHIN_S)
        is_closed = True
    except TimeoutError:
        pass
    except OSError:
        is_closed = True
    status = answer.split(b" ", 2)[1:2] if answer.startswith(b"HTTP/1.") else []
    return int(status[0]) if status else 0, answer, is_closed


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return bool(end) and length is not None and len(body) >= int(length[1])
