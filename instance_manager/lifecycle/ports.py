"""The ports engines may listen on: the lowest free one first, released when the process group is gone."""

from __future__ import annotations

import socket
from collections.abc import Callable

from instance_manager.errors import NoCapacity

MAX_PORT = 65535


def can_bind(host: str, port: int) -> bool:
    """Whether a server could listen there now, tested as servers bind (with SO_REUSEADDR)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class PortRange:
    """`count` ports from `base` upward, each held by at most one instance."""

    def __init__(
        self, host: str, base: int, count: int, *, bind_test: Callable[[str, int], bool] = can_bind
    ) -> None:
        self._host = host
        self._ports = range(base, min(base + count, MAX_PORT + 1))
        self._held: set[int] = set()
        self._bind_test = bind_test

    @property
    def held(self) -> frozenset[int]:
        return frozenset(self._held)

    def take(self, *, avoid: int | None = None) -> int:
        """The lowest free port that can be bound. Raises NoCapacity.

        `avoid` is a port just lost to another program, which may release it and take it again.
        """
        free = [port for port in self._ports if port not in self._held and port != avoid]
        for port in free:
            if self._bind_test(self._host, port):
                self._held.add(port)
                return port
        raise NoCapacity(self._refusal(free), retry_after_s=5.0)

    @property
    def has_free(self) -> bool:
        """Whether `take` would succeed."""
        return any(self._bind_test(self._host, port) for port in self._ports if port not in self._held)

    @property
    def refusal(self) -> str:
        """Why no port is free, for an error message."""
        return self._refusal([port for port in self._ports if port not in self._held])

    def hold(self, port: int) -> None:
        """Take the port of an adopted engine; it may lie outside the range."""
        self._held.add(port)

    def is_bindable(self, port: int) -> bool:
        """Whether this port, which the caller already holds, can be bound."""
        return self._bind_test(self._host, port)

    def release(self, port: int) -> None:
        """Release a port. Its process group must be gone."""
        self._held.remove(port)

    def _refusal(self, free: list[int]) -> str:
        span = f"{self._ports.start}-{self._ports.stop - 1}" if self._ports else "none"
        if not free:
            return (
                f"all {len(self._ports)} instance slots are taken (ports {span}); "
                "stop an instance or raise VLLM_MAX_INSTANCES"
            )
        return (
            f"no port in {span} is free: {len(self._held)} are held by instances, "
            f"{len(free)} by other programs; set another VLLM_BASE_PORT or stop an instance"
        )
