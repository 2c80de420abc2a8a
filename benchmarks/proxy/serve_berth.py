"""Berth's front door over one engine that is always up: `serve_berth PORT UPSTREAM_PORT`."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI

from api.dispatch import Dispatcher
from api.fast_http import FastHttpProtocol
from api.proxy import DataPlane
from instance_manager.errors import InstanceNotFound
from instance_manager.metrics import ProxyMetrics
from instance_manager.types import Endpoint


class CountedLease:
    """A lease that costs what the manager's does: an object, two counts and a clock."""

    __slots__ = ("_is_out", "_registry", "endpoint", "instance_id", "model_name")

    def __init__(self, registry: Registry, instance_id: str) -> None:
        self.endpoint = registry.endpoint
        self.instance_id = instance_id
        self.model_name = "bench"
        self._registry = registry
        self._is_out = True
        registry.in_flight += 1

    def release(self) -> None:
        if self._is_out:
            self._is_out = False
            self._registry.in_flight -= 1


class Registry:
    """Grants leases on one endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.in_flight = 0

    def try_lease(self, instance_id: str) -> CountedLease | None:
        if instance_id != "bench":
            raise InstanceNotFound(f"no instance {instance_id!r}")
        return CountedLease(self, instance_id)

    async def wait_for_lease(self, instance_id: str) -> CountedLease:
        return CountedLease(self, instance_id)


def main() -> None:
    port, upstream_port = int(sys.argv[1]), int(sys.argv[2])
    registry = Registry(Endpoint("127.0.0.1", upstream_port, "engine-key", 1))
    control = FastAPI()
    uvicorn.run(
        Dispatcher(control, DataPlane(registry, ProxyMetrics())),
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
