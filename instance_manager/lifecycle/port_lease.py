"""The port an instance holds: at most one, kept until its process group is empty."""

from __future__ import annotations

from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.ports import PortRange


class PortLease:
    """Also writes the port to the instance."""

    def __init__(self, ports: PortRange, instance: Instance, port: int | None) -> None:
        """`port` must already be taken from `ports`."""
        self._ports = ports
        self._instance = instance
        self.port = port  # None = no port is held

    @property
    def held(self) -> int:
        """The port, for callers that require one."""
        if self.port is None:
            raise RuntimeError("no port is held")
        return self.port

    def acquire(self) -> None:
        """Take a port unless one is held. Raises NoCapacity."""
        if self.port is None:
            self._set(self._ports.take())

    def change(self) -> None:
        """Take another port and release the current one. Raises NoCapacity."""
        lost = self.port
        self._set(self._ports.take(avoid=lost))
        if lost is not None:
            self._ports.release(lost)

    def release(self) -> None:
        """Return the port, if one is held."""
        if self.port is not None:
            self._ports.release(self.port)
            self._set(None)

    def abandon(self) -> None:
        """Give up the port but leave it taken in the range: a process may still listen on it."""
        self._set(None)

    def _set(self, port: int | None) -> None:
        self.port = self._instance.port = port
