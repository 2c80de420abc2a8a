"""Starts and adopts the process of an instance: a plain one, or one in a container."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from instance_manager.backends import backend_of
from instance_manager.config import ManagerConfig
from instance_manager.lifecycle.instance import Instance
from instance_manager.process.cgroups import delegated_cgroup
from instance_manager.process.containers.command import ContainerPlan, ContainerRun, gpu_flags, run_command
from instance_manager.process.containers.environment import values_of_e
from instance_manager.process.containers.leftovers import remember_runtime
from instance_manager.process.containers.process import CLIENT_EXIT_S, ContainerProcess
from instance_manager.process.containers.runtime import ContainerRuntime
from instance_manager.process.environment import child_environment, engine_environment
from instance_manager.process.process_group import EngineProcess, ProcessGroup
from instance_manager.process.process_tree import RunStatus
from instance_manager.process.supervised import SupervisedProcess, can_supervise

_NVIDIA = Path("/dev/nvidiactl")  # exists where NVIDIA's driver runs


async def spawn(instance: Instance, port: int, output: int, config: ManagerConfig) -> EngineProcess:
    """Start the instance's command with its secrets, output to the file descriptor. Raises OSError.

    Writes the command to the instance.
    """
    env = _environment(instance, config)
    if instance.plan.container is not None:
        return await _spawn_in_container(instance, instance.plan.container, port, output, env, config)
    argv = instance.command = instance.plan.argv(instance.host, port)
    return await _spawn(instance, argv, env, output, config)


async def _spawn(
    instance: Instance,
    argv: list[str],
    env: Mapping[str, str],
    output: int,
    config: ManagerConfig,
    linger_s: float = 0.0,
) -> EngineProcess:
    cwd = instance.plan.cwd
    if not config.use_shim or not can_supervise():
        return await ProcessGroup.spawn(argv, env, cwd, output)
    status_path = config.status_path(instance.instance_id)
    return await SupervisedProcess.spawn(
        argv, env, cwd, output, status_path, cgroup=delegated_cgroup(), linger_s=linger_s
    )


async def _spawn_in_container(
    instance: Instance,
    plan: ContainerPlan,
    port: int,
    output: int,
    env: Mapping[str, str],
    config: ManagerConfig,
) -> EngineProcess:
    secrets = instance.secrets
    assert secrets is not None  # noqa: S101 - checked where the environment was made
    runtime, id_file = container_runtime(plan.runtime, config), _id_file(instance, config)
    await asyncio.to_thread(_prepare, plan, id_file)
    run = ContainerRun(instance.instance_id, instance.generation + 1, secrets.token)
    values, program_env = values_of_e(
        {**env, **plan.env}, runtime_environment(config), plan.variables | plan.env.keys()
    )
    host = instance.host if plan.is_on_host_network else "0.0.0.0"  # noqa: S104 - within the container
    argv = instance.command = run_command(
        runtime.program,
        plan,
        run,
        instance.plan.argv(host, port),
        host=instance.host,
        port=port,
        env=values,
        id_file=id_file,
        flags=[
            *runtime.init_flags,
            *gpu_flags(plan, instance.spec.devices, has_gpus=await asyncio.to_thread(_NVIDIA.exists)),
        ],
    )
    client = await _spawn(instance, argv, program_env, output, config, linger_s=CLIENT_EXIT_S)
    return _contained(instance, plan, client, secrets.token, config)


def adopt(instance: Instance, status: RunStatus, status_path: Path, config: ManagerConfig) -> EngineProcess:
    """The process that a previous Berth process started; if it has ended since, `exited` is done."""
    process = SupervisedProcess.adopt(status, status_path)
    plan = instance.plan.container
    return process if plan is None else _contained(instance, plan, process, status.token, config)


def container_runtime(name: str, config: ManagerConfig) -> ContainerRuntime:
    return ContainerRuntime(name, runtime_environment(config))


def runtime_environment(config: ManagerConfig) -> dict[str, str]:
    """Of the runtime's program, whatever it is told to do."""
    return child_environment(os.environ, config.engine_env)


def _contained(
    instance: Instance, plan: ContainerPlan, client: EngineProcess, token: str, config: ManagerConfig
) -> ContainerProcess:
    return ContainerProcess(
        client,
        container_runtime(plan.runtime, config),
        token,
        _id_file(instance, config),
        image=plan.image,
        is_on_host_network=plan.is_on_host_network,
    )


def _environment(instance: Instance, config: ManagerConfig) -> dict[str, str]:
    secrets, backend = instance.secrets, backend_of(instance.spec.engine)
    if secrets is None:
        raise RuntimeError("an engine can't be started without a token and a key")
    return engine_environment(
        os.environ,
        config.engine_env,
        instance.plan.env,
        instance.spec.env,
        instance_id=instance.instance_id,
        token=secrets.token,
        api_key=secrets.api_key,
        api_key_variable=backend.api_key_variable,
        devices=instance.spec.devices,
    )


def _id_file(instance: Instance, config: ManagerConfig) -> Path:
    return config.status_path(instance.instance_id).with_suffix(".container").absolute()


def _prepare(plan: ContainerPlan, id_file: Path) -> None:
    """Folders that must exist, and no file with an old id: the runtime refuses to overwrite it."""
    for folder in (id_file.parent, *plan.folders):
        folder.mkdir(parents=True, exist_ok=True)
    id_file.unlink(missing_ok=True)
    remember_runtime(id_file.parent, plan.runtime)
