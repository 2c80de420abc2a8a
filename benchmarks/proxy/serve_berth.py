"""Berth's front door over one engine that is always up: `serve_berth PORT UPSTREAM_PORT`.

All that stands before an engine in production stands here: access control, dispatcher, data plane, metrics,
and the manager's own gate for leases. Only the supervisor is missing: nothing is started.
"""

from __future__ import annotations

import sys
import time

import uvicorn
from fastapi import FastAPI

from api.auth import AccessControl, Keys
from api.dispatch import Dispatcher
from api.fast_http import FastHttpProtocol
from api.proxy import DataPlane
from instance_manager.admission import Gate, Lease
from instance_manager.errors import InstanceNotFound
from instance_manager.metrics import ProxyMetrics
from instance_manager.types import Endpoint


class Instances:
    """One running instance, named bench."""

    def __init__(self, endpoint: Endpoint) -> None:
        gate = Gate("bench", "bench", max_in_flight=0, max_queue=256, clock=time.monotonic)
        gate.open(endpoint)
        self._gates = {"bench": gate}

    def try_lease(self, instance_id: str) -> Lease | None:
        return self._gate(instance_id).try_acquire()

    async def wait_for_lease(self, instance_id: str) -> Lease:
        return await self._gate(instance_id).acquire()

    def _gate(self, instance_id: str) -> Gate:
        gate = self._gates.get(instance_id)
        if gate is None:
            raise InstanceNotFound(f"there is no instance {instance_id!r}")
        return gate


def main() -> None:
    port, upstream_port = int(sys.argv[1]), int(sys.argv[2])
    instances = Instances(Endpoint("127.0.0.1", upstream_port, "engine-key", 1))
    data_plane = DataPlane(instances, ProxyMetrics())
    uvicorn.run(
        AccessControl(Dispatcher(FastAPI(), data_plane), Keys()),
        port=port,
        log_level="warning",
        http=FastHttpProtocol,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )


if __name__ == "__main__":
    main()
