"""Berth in front of one engine that is always running: `serve_berth PORT UPSTREAM_PORT`.

Has everything between client and engine in production: access control, dispatcher, data plane, gateway,
metrics, and the manager's gate for leases. Only the supervisor is missing: nothing is started.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from api.access.key_store import Keys
from api.auth import AccessControl
from api.gateway.gateway import Gateway
from api.gateway.model_routes import ModelRoutes
from api.http.dispatch import Dispatcher
from api.proxy.proxy import DataPlane
from api.server import garbage
from api.server.limits import ConnectionLimits
from api.server.protocol import HttpServer
from instance_manager.backends import plan_launch
from instance_manager.config import ManagerConfig
from instance_manager.errors import InstanceNotFound
from instance_manager.fleet.fleet import Fleet, FleetConfig
from instance_manager.fleet.memory_planner import MemoryPlanner, MemoryPlannerConfig
from instance_manager.lifecycle.gate import Lease
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.instance_record import new_instance
from instance_manager.manager import InstanceManager
from instance_manager.memory.gpu import GpuDriver
from instance_manager.memory.measurements import Measurements
from instance_manager.metrics.proxy import ProxyMetrics
from instance_manager.types import Endpoint, InstanceSpec

NAME = "bench"


class Instances:
    """One running instance, named bench."""

    def __init__(self, instance: Instance) -> None:
        self._gates = {instance.instance_id: instance.gate}

    def try_lease(self, instance_id: str) -> Lease | None:
        gate = self._gates.get(instance_id)
        if gate is None:
            raise InstanceNotFound(f"there is no instance {instance_id!r}")
        return gate.try_acquire()

    async def wait_for_lease(self, instance_id: str) -> Lease:
        return await self._gates[instance_id].acquire()


def application(upstream_port: int) -> AccessControl:
    config = ManagerConfig(max_queue=256)
    manager = InstanceManager(config)
    spec = InstanceSpec(NAME, engine="command", command=("engine", "{port}"), name=NAME)
    instance = new_instance(
        NAME,
        spec,
        plan_launch(spec, config),
        config=config,
        events=manager.events,
        clock=time.monotonic,
        port=upstream_port,
        log_path=Path("engine.log"),
    )
    instance.gate.open(Endpoint("127.0.0.1", upstream_port, "engine-key", 1))
    room = MemoryPlanner(manager, MemoryPlannerConfig(), Measurements(Path("state")), GpuDriver({}))
    fleet = Fleet(manager, FleetConfig(), room)
    fleet.adopt(instance)
    data_plane = DataPlane(Instances(instance), ProxyMetrics())
    gateway = Gateway(fleet, data_plane)
    dispatcher = Dispatcher(
        FastAPI(), data_plane, ModelRoutes(gateway, gateway, frozenset(), has_fast_path=True)
    )
    return AccessControl(dispatcher, Keys())


def main() -> None:
    port, upstream_port = int(sys.argv[1]), int(sys.argv[2])
    served = application(upstream_port)
    garbage.settle()
    uvicorn.run(
        served,
        port=port,
        log_level="warning",
        http=HttpServer(ConnectionLimits()).protocol(),
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )


if __name__ == "__main__":
    main()
