"""The sockets that Berth listens on, bound first: a port in use then fails before any engine is touched."""

from __future__ import annotations

import errno
import socket
from typing import Any

_ANY = {"0.0.0.0", "::", ""}  # noqa: S104 - valid values of `APP_HOST`
_ABSENT = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT}
_MAX_TRIES = 10  # to find a system-chosen port that is free in both families

_Address = tuple[socket.AddressFamily, tuple[Any, ...]]


def bind(host: str, port: int) -> list[socket.socket]:
    """Bind one socket per address of `host`, all on one port; they refuse connections until they listen.

    "0.0.0.0" and "::" mean every address of this machine, of both families: clients use `localhost`, and
    their resolver decides whether that is 127.0.0.1 or ::1. Of several addresses, those that this machine
    lacks are skipped, for instance if IPv6 is disabled. Raises OSError.
    """
    addresses = _addresses(host)
    for _ in range(_MAX_TRIES - 1):
        try:
            return _bind_all(addresses, port)
        except OSError as error:
            if port or error.errno != errno.EADDRINUSE:
                raise
    return _bind_all(addresses, port)


def _addresses(host: str) -> list[_Address]:
    if host in _ANY:
        return [(socket.AF_INET, ("0.0.0.0", 0)), (socket.AF_INET6, ("::", 0))]  # noqa: S104
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _bind_all(addresses: list[_Address], port: int) -> list[socket.socket]:
    bound: list[socket.socket] = []
    absent = OSError(errno.EADDRNOTAVAIL, "no such address on this machine")
    try:
        for family, (host, _, *scope) in addresses:
            try:
                bound.append(_bind_one(family, (host, port, *scope)))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                absent = error
            else:
                port = bound[0].getsockname()[1]  # if the system chose it, the others share it
        if not bound:
            raise absent
    except OSError:
        for opened in bound:
            opened.close()
        raise
    return bound


def _bind_one(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock
