"""Reserves and stores what an engine process needs before it is spawned: a port and its secrets."""

from __future__ import annotations

import secrets

from instance_manager.errors import InstanceExists, NoCapacity
from instance_manager.lifecycle.context import SupervisorContext
from instance_manager.lifecycle.engine_handle import EngineFailed
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.port_lease import PortLease
from instance_manager.process.logs import LogFile
from instance_manager.state.stores.errors import PortHeld
from instance_manager.types import FailureClass, InstanceFailure, RunSecrets

_PORT_ATTEMPTS = 3  # another node may hold the port in the store


async def reserve(
    instance: Instance, log: LogFile, context: SupervisorContext, port_lease: PortLease
) -> None:
    """Return once a later Berth process could find the engine by the store. Raises EngineFailed."""
    for attempt in range(1, _PORT_ATTEMPTS + 1):
        if port_lease.port is None or not context.ports.is_bindable(port_lease.port):
            change_port(port_lease)
        instance.secrets = RunSecrets(context.new_token(), secrets.token_urlsafe(24))
        instance.log_start = await log.size()
        try:
            await context.keeper.written(instance.instance_id)
            return
        except InstanceExists as error:
            raise EngineFailed(InstanceFailure(FailureClass.BAD_ARGUMENTS, error.message)) from error
        except PortHeld as error:
            if attempt == _PORT_ATTEMPTS:
                raise EngineFailed(InstanceFailure(FailureClass.PORT_IN_USE, error.message)) from error
        change_port(port_lease)


def change_port(port_lease: PortLease) -> None:
    """Take another port. Raises EngineFailed."""
    lost = port_lease.port
    try:
        port_lease.change()
    except NoCapacity as error:
        message = f"port {lost} is in use, and {error.message}"
        raise EngineFailed(InstanceFailure(FailureClass.PORT_IN_USE, message)) from error
