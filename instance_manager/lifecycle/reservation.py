"""What a process needs before there is one: a port, and secrets by which it is known again, both stored."""

from __future__ import annotations

import secrets

from instance_manager.errors import InstanceExists, NoCapacity
from instance_manager.lifecycle.context import SupervisorContext
from instance_manager.lifecycle.engine_handle import EngineFailed
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.port_lease import PortHold
from instance_manager.process.logs import LogFile
from instance_manager.state.stores.errors import PortHeld
from instance_manager.types import FailureClass, InstanceFailure, RunSecrets

_PORT_ATTEMPTS = 3  # because another Berth holds the port in the store


async def book(instance: Instance, log: LogFile, dock: SupervisorContext, berth: PortHold) -> None:
    """Return once a Berth that comes after us could tell what was started. Raises EngineFailed."""
    for attempt in range(1, _PORT_ATTEMPTS + 1):
        if berth.port is None or not dock.ports.is_bindable(berth.port):
            change_port(berth)
        instance.secrets = RunSecrets(dock.new_token(), secrets.token_urlsafe(24))
        instance.log_start = await log.size()
        try:
            await dock.keeper.written(instance.instance_id)
            return
        except InstanceExists as error:
            raise EngineFailed(InstanceFailure(FailureClass.BAD_ARGUMENTS, error.message)) from error
        except PortHeld as error:
            if attempt == _PORT_ATTEMPTS:
                raise EngineFailed(InstanceFailure(FailureClass.PORT_IN_USE, error.message)) from error
        change_port(berth)


def change_port(berth: PortHold) -> None:
    """Take another one. Raises EngineFailed."""
    lost = berth.port
    try:
        berth.change()
    except NoCapacity as error:
        message = f"port {lost} is in use, and {error.message}"
        raise EngineFailed(InstanceFailure(FailureClass.PORT_IN_USE, message)) from error
