"""The program `docker` or `podman`: asks it about containers, and has it end them. Knows no instances."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from instance_manager.process.containers.command import OWNER_LABEL, RUN_LABEL

logger = logging.getLogger("berth.manager")

_CALL_TIMEOUT_S = 10.0
_REMOVAL_TIMEOUT_S = 30.0  # a container with large GPU contexts takes seconds to end
_INIT_PROGRAMS = (
    "/usr/libexec/podman/catatonit",
    "/usr/local/libexec/podman/catatonit",
    "/usr/bin/catatonit",
)
# Either program says one of these of a container that has gone meanwhile.
_NO_SUCH = ("no such container", "no such object", "no container with name or id")


class RuntimeUnavailable(Exception):
    """The runtime's program is missing, or didn't do as it was told."""


@dataclass(frozen=True, slots=True)
class ContainerState:
    """What a runtime says of a container."""

    container_id: str
    name: str
    labels: Mapping[str, str]
    is_running: bool
    pid: int  # of its first process, as the runtime's machine counts; 0 = none
    exit_code: int
    was_out_of_memory: bool
    error: str  # why it couldn't be started


class ContainerRuntime:
    """Each method runs the program once or twice, and takes tens of milliseconds."""

    def __init__(self, name: str, environ: Mapping[str, str] | None = None) -> None:
        """`environ`: the program's environment; None = ours."""
        self.name = name
        self._environ = dict(os.environ if environ is None else environ)

    @property
    def program(self) -> str:
        """Its path: an engine's environment may have another PATH."""
        return shutil.which(self.name, path=self._environ.get("PATH")) or self.name

    @property
    def init_flags(self) -> list[str]:
        """For a first process that passes signals on and reaps, where the runtime has one."""
        has_init = self.name != "podman" or any(map(os.path.exists, _INIT_PROGRAMS))
        return ["--init"] if has_init else []

    async def of_run(self, run_id: str) -> list[str]:
        """The ids of a run's containers, ended ones too: none or one. Raises RuntimeUnavailable."""
        return await self._list(f"{RUN_LABEL}={run_id}")

    async def of_owner(self, owner: str) -> list[str]:
        """The ids of all containers of a Berth, ended ones too. Raises RuntimeUnavailable."""
        return await self._list(f"{OWNER_LABEL}={owner}")

    async def _list(self, label: str) -> list[str]:
        output = await self._call("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={label}")
        return output.split()

    async def inspect(self, container_id: str) -> ContainerState | None:
        """None if there is no such container. Raises RuntimeUnavailable."""
        try:
            output = await self._call("inspect", "--type", "container", container_id)
        except RuntimeUnavailable as error:
            if any(words in str(error).lower() for words in _NO_SUCH):
                return None
            raise
        try:
            return _state(json.loads(output)[0])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise RuntimeUnavailable(f"{self.name} inspect: unreadable output: {error!r}") from error

    async def stop(self, ids: Sequence[str], grace_s: float) -> None:
        """Signal as the image wants it, wait, kill. Raises RuntimeUnavailable."""
        seconds = max(1, math.ceil(grace_s))
        await self._call("stop", "-t", str(seconds), *ids, timeout_s=seconds + _CALL_TIMEOUT_S)

    async def remove(self, ids: Sequence[str]) -> None:
        """Kill and remove containers and their anonymous volumes. Raises RuntimeUnavailable."""
        if self.name == "podman":  # which would stop them patiently, and can't everywhere be told not to
            with contextlib.suppress(RuntimeUnavailable):
                await self._call("kill", *ids)
        try:
            await self._call("rm", "--force", "--volumes", *ids, timeout_s=_REMOVAL_TIMEOUT_S)
        except RuntimeUnavailable as error:
            if not any(words in str(error).lower() for words in (*_NO_SUCH, "already in progress")):
                raise

    async def remove_run(self, run_id: str, timeout_s: float) -> bool:
        """Remove a run's containers until there are none; returns whether that happened in time."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        is_first = True
        while True:
            try:
                if not (ids := await self.of_run(run_id)):
                    return True
                await self.remove(ids)
            except RuntimeUnavailable as error:
                logger.log(logging.WARNING if is_first else logging.DEBUG, "a container remains: %s", error)
                is_first = False
                await asyncio.sleep(min(0.5, timeout_s / 4))
            if asyncio.get_running_loop().time() > deadline:
                return False

    async def _call(self, *arguments: str, timeout_s: float = _CALL_TIMEOUT_S) -> str:
        """The program's output. Raises RuntimeUnavailable with what it says."""
        try:
            child = await asyncio.create_subprocess_exec(
                self.program,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._environ,
                start_new_session=True,  # not reached by signals to Berth's terminal
            )
        except OSError as error:
            raise RuntimeUnavailable(f"{self.name!r} can't be run: {error.strerror or error}") from error
        try:
            async with asyncio.timeout(timeout_s):
                output, errors = await child.communicate()
        except TimeoutError:
            raise RuntimeUnavailable(f"{self.name} {arguments[0]}: no answer in {timeout_s:g} s") from None
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        if child.returncode:
            said = errors.decode(errors="replace").strip() or f"exit code {child.returncode}"
            raise RuntimeUnavailable(f"{self.name} {arguments[0]}: {said}")
        return output.decode(errors="replace")


def _state(found: Mapping[str, object]) -> ContainerState:
    """Of `inspect`'s JSON, in which both runtimes use the same names."""
    state, config = found["State"], found["Config"]
    if not isinstance(state, Mapping) or not isinstance(config, Mapping):
        raise TypeError("State and Config are no objects")
    return ContainerState(
        container_id=str(found["Id"]),
        name=str(found["Name"]).removeprefix("/"),
        labels=dict(config.get("Labels") or {}),
        is_running=bool(state.get("Running")),
        pid=int(state.get("Pid") or 0),
        exit_code=int(state.get("ExitCode") or 0),
        was_out_of_memory=bool(state.get("OOMKilled")),
        error=str(state.get("Error") or ""),
    )
