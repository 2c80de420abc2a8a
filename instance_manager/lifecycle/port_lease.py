"""The port that an instance holds: one at a time, kept until nothing of its process is left."""

from __future__ import annotations

from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.ports import PortRange


class PortHold:
    """Shows the port in the instance's record too."""

    def __init__(self, ports: PortRange, instance: Instance, port: int | None) -> None:
        """`port` has been taken out of `ports` already."""
        self._ports = ports
        self._instance = instance
        self.port = port  # None = none is held

    @property
    def held(self) -> int:
        """The port, where there has to be one."""
        if self.port is None:
            raise RuntimeError("no port is held")
        return self.port

    def take(self) -> None:
        """Hold one, if none is. Raises NoCapacity."""
        if self.port is None:
            self._show(self._ports.take())

    def change(self) -> None:
        """Another one in its place. Raises NoCapacity."""
        lost = self.port
        self._show(self._ports.take(avoid=lost))
        if lost is not None:
            self._ports.release(lost)

    def release(self) -> None:
        """Give it back, if one is held."""
        if self.port is not None:
            self._ports.release(self.port)
            self._show(None)

    def keep_taken(self) -> None:
        """Let go of it, but leave it taken in the range: somebody may still listen there."""
        self._show(None)

    def _show(self, port: int | None) -> None:
        self.port = self._instance.port = port
