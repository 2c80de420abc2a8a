"""`/instances`: create, read, change, stop, start, restart and delete. A thin layer over the manager."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from api.access.keys import caller_of
from api.control.deps import Config, Manager
from api.control.schemas import (
    STOP_LEVEL,
    InstanceCreate,
    InstanceList,
    InstancePatch,
    Seconds,
    SleepLevel,
)
from instance_manager.backends import AUTO, EngineChoice, choose_engine
from instance_manager.config import ManagerConfig
from instance_manager.errors import InstanceNotFound, ModelNotFound
from instance_manager.lifecycle.failures import start_error
from instance_manager.lifecycle.instance import Instance
from instance_manager.lifecycle.instance_view import InstanceView
from instance_manager.memory.gpu import Gpu
from instance_manager.memory.placement.local import choose_devices
from instance_manager.process.environment import child_environment
from instance_manager.types import InstanceSpec, InstanceState

router = APIRouter(prefix="/instances", tags=["instances"])

Wait = Annotated[
    float, Query(ge=0, le=3600, allow_inf_nan=False, description="Seconds to wait until it runs")
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="A request with the same key returns the same instance, for one day",
    ),
]
Force = Annotated[bool, Query(description="Do not wait for requests in flight")]


@router.post("", status_code=201, summary="Create an instance and start its engine")
async def create_instance(
    body: InstanceCreate,
    request: Request,
    response: Response,
    manager: Manager,
    config: Config,
    wait: Wait = 0,
    idempotency_key: IdempotencyKey = None,
) -> dict[str, Any]:
    """Returns at once with the record in `starting`; with `wait`, once it is running or has failed."""
    devices = body.devices
    if devices:  # an engine that does not find its GPU would silently run on the CPU
        gpus = await asyncio.to_thread(request.app.state.model_files.list_gpus)
        devices = list(choose_devices(gpus, 0, 0, devices))  # numbers refer to CUDA_VISIBLE_DEVICES
    choice = await asyncio.to_thread(_choice, body, config, request.app.state.model_files.list_gpus)
    spec = _spec(body, config, devices, choice)
    try:
        instance = await manager.create_once(spec, _of_caller(idempotency_key, request))
    except ModelNotFound as error:
        names = request.app.state.fleet.names_like(spec.model_name)
        raise ModelNotFound(f"{error.message}; {names}", param=error.param) from error
    response.headers["Location"] = f"/instances/{instance.instance_id}"
    return await _settled(manager, instance, wait)


@router.get("", summary="List instances")
async def list_instances(
    manager: Manager,
    status: InstanceState | None = None,
    model: str | None = None,
    include_ended: Annotated[
        bool, Query(alias="all", description="Include stopped and failed instances")
    ] = False,
) -> InstanceList:
    """Includes those of other nodes that share the state store, each with its `owner`."""
    found = manager.list(status=status, model=model, include_terminal=include_ended or status is not None)
    remote = [
        InstanceView(record, owner_is_alive=is_alive).to_json()
        for record, is_alive in await manager.state.instances_of_peers()
        if (status is None or record.state == status)
        and (model is None or model in (record.model_name, record.served_model_name))
        and (include_ended or status is not None or not record.state.is_terminal)
    ]
    return InstanceList(data=[*(instance.record() for instance in found), *remote])


@router.get("/{instance_id}", summary="Get an instance's record")
async def get_instance(instance_id: str, manager: Manager) -> dict[str, Any]:
    try:
        return manager.get(instance_id).record()
    except InstanceNotFound:
        for record, is_alive in await manager.state.instances_of_peers():
            if record.instance_id == instance_id:
                return InstanceView(record, owner_is_alive=is_alive).to_json()
        raise


@router.patch("/{instance_id}", summary="Change an instance's idle time-out, pin or unpin it")
async def patch_instance(instance_id: str, body: InstancePatch, manager: Manager) -> dict[str, Any]:
    return manager.patch(instance_id, idle_timeout_s=body.timeout, pinned=body.pinned).record()


@router.delete("/{instance_id}", status_code=204, summary="Stop an instance and delete its record")
async def delete_instance(instance_id: str, manager: Manager, force: Force = False) -> None:
    """Drains first, unless forced; returns once the engine's whole process group has ended."""
    await manager.delete(instance_id, force=force)


@router.post("/{instance_id}/stop", summary="Stop the engine, keep the instance")
async def stop_instance(instance_id: str, manager: Manager, force: Force = False) -> dict[str, Any]:
    """A failed instance becomes stopped; the failure stays in the events."""
    return (await manager.stop(instance_id, force=force)).record()


@router.post("/{instance_id}/start", summary="Start a stopped or failed instance again")
async def start_instance(instance_id: str, manager: Manager, wait: Wait = 0) -> dict[str, Any]:
    return await _settled(manager, manager.start(instance_id), wait)


@router.post("/{instance_id}/restart", summary="Stop the engine and start it again")
async def restart_instance(instance_id: str, manager: Manager, wait: Wait = 0) -> dict[str, Any]:
    return await _settled(manager, await manager.restart(instance_id), wait)


@router.post("/{instance_id}/sleep", summary="Put the engine to sleep to free memory; a request wakes it")
async def sleep_instance(instance_id: str, manager: Manager, level: SleepLevel = 1) -> dict[str, Any]:
    """Drains first; returns once the engine sleeps or, at level 3, has ended."""
    if level == STOP_LEVEL:
        return (await manager.stop(instance_id)).record()
    return (await manager.sleep(instance_id, level)).record()


@router.post("/{instance_id}/wake", summary="Wake a sleeping engine")
async def wake_instance(instance_id: str, manager: Manager) -> dict[str, Any]:
    instance = await manager.wake(instance_id)
    if instance.failure is not None:
        raise start_error(f"instance {instance_id!r}", instance.failure, instance_id)
    return instance.record()


async def _settled(manager: Manager, instance: Instance, wait_s: Seconds) -> dict[str, Any]:
    """The record, after waiting up to `wait_s` for the start. Raises the start's failure."""
    if wait_s > 0:
        instance = await manager.wait_ready(instance.instance_id, wait_s)
        if instance.failure is not None:
            raise start_error(f"instance {instance.instance_id!r}", instance.failure, instance.instance_id)
    return instance.record()


def _of_caller(idempotency_key: str | None, request: Request) -> str | None:
    """The key within the caller's own namespace: two callers may choose the same one."""
    tenant = caller_of(request.scope).tenant
    return f"{tenant}/{idempotency_key}" if tenant and idempotency_key is not None else idempotency_key


def _choice(
    body: InstanceCreate, config: ManagerConfig, list_gpus: Callable[[], Sequence[Gpu]]
) -> EngineChoice:
    """The engine that is asked for, else the default, else by the model's files; and why. Blocks."""
    if body.engine not in (None, AUTO):
        return EngineChoice(body.engine, "named in the request")
    if config.default_engine != AUTO:
        return EngineChoice(config.default_engine, f"DEFAULT_ENGINE={config.default_engine}")
    return choose_engine(
        body.model_name or config.default_model,
        model_dirs=config.model_dirs,
        environ=child_environment(os.environ, config.engine_env, body.env),
        options=config.options,
        has_gpu=lambda: bool(list_gpus()),
    )


def _spec(
    body: InstanceCreate, config: ManagerConfig, devices: list[str] | None, choice: EngineChoice
) -> InstanceSpec:
    return InstanceSpec(
        model_name=body.model_name or config.default_model,
        engine=choice.engine,
        engine_reason=choice.reason,
        params=body.params,
        timeout_s=body.timeout,
        name=body.name,
        env=body.env,
        devices=devices,
        command=body.command,
        stop_command=body.stop_command,
        health_path=body.health_path,
        runtime=body.runtime,
        image=body.image,
        volumes=body.volumes,
        gpus=body.gpus,
        run_args=body.run_args,
    )
