"""The sockets that Berth listens on. Bound before anything else, so that a taken port harms no engine."""

from __future__ import annotations

import socket


def bind(host: str, port: int) -> list[socket.socket]:
    """One for each address that `host` names; who connects is refused until they listen. Raises OSError."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = dict.fromkeys((family, address) for family, _, _, _, address in found)
    bound: list[socket.socket] = []
    try:
        for family, address in addresses:
            one = socket.socket(family, socket.SOCK_STREAM)
            bound.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.setblocking(False)
            one.bind(address)
    except OSError:
        for one in bound:
            one.close()
        raise
    return bound
