"""The listening socket, opened before anything slow is loaded, so that a port in use is reported at once."""

from __future__ import annotations

import errno
import socket

from engine.errors import ConfigError

BACKLOG = 2048


class AddressInUse(ConfigError):
    code = "port_in_use"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises AddressInUse, or ConfigError for an address that is not local."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"Can't listen on host {host!r}: {error}.") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # at once: only this reserves the port
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"Address already in use: port {port} on {host}.") from error
        raise ConfigError(f"Can't listen on {host}, port {port}: {error}.") from error
    listener.setblocking(False)
    return listener
