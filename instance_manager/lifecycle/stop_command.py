"""Runs an instance's `stop_command`: how its owner wants the engine to be asked to end, before any signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence

from instance_manager.config import ManagerConfig
from instance_manager.lifecycle.engine_handle import EngineHandle
from instance_manager.lifecycle.instance import Instance
from instance_manager.process.environment import child_environment
from instance_manager.process.logs import LogFile

logger = logging.getLogger("berth.manager")

_PLACEHOLDER = re.compile(r"\{(pid|port|host|model)\}")
_AFTERWARDS_S = 1.0  # for an engine that its command was to end


async def ask_to_end(
    engine: EngineHandle, instance: Instance, log: LogFile, config: ManagerConfig, grace_s: float
) -> float:
    """Run the instance's command, if it has one, and wait until the engine has ended or STOP_GRACE is over.

    Returns how long the engine may take to end by a signal: all of `grace_s` if the command failed.
    """
    command = instance.spec.stop_command
    if not command or grace_s <= 0 or engine.exited.done():
        return grace_s
    limit_s, began = config.stop_grace_s, time.monotonic()
    values = {
        "pid": str(engine.pid),
        "port": str(engine.port),
        "host": instance.host,
        "model": instance.model_name,
    }
    env = child_environment(os.environ, config.engine_env, instance.plan.env, instance.spec.env)
    try:
        output = await log.open_to_append()
    except OSError as error:
        logger.warning("instance=%s: its log can't be written: %s", instance.instance_id, error)
        return grace_s
    try:
        succeeded = await _run(command, values, env, output, limit_s)
    finally:
        os.close(output)
    if not succeeded:
        return grace_s
    remaining_s = limit_s - (time.monotonic() - began)
    await asyncio.wait((engine.exited,), timeout=max(remaining_s, 0.0))
    return min(grace_s, _AFTERWARDS_S)


async def _run(
    command: Sequence[str], values: Mapping[str, str], env: Mapping[str, str], output: int, timeout_s: float
) -> bool:
    """Run it with its placeholders filled in; whether it succeeded in time. A failure is logged."""
    argv = [_PLACEHOLDER.sub(lambda match: values[match[1]], part) for part in command]
    try:
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(env),
            start_new_session=True,
        )
    except OSError as error:
        logger.warning("stop_command %r can't be run: %s", argv[0], error.strerror or error)
        return False
    try:
        async with asyncio.timeout(timeout_s):
            returncode = await child.wait()
    except TimeoutError:
        logger.warning("stop_command %r didn't end within %g s: it is killed", argv[0], timeout_s)
        return False
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    if returncode:
        logger.warning("stop_command %r exited with %d", argv[0], returncode)
    return returncode == 0
