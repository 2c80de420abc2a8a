"""Classifies why an engine in a container failed, where the container runtime gave the reason. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from instance_manager.backends.log_patterns import LogPatterns
from instance_manager.lifecycle.failures import classify_exit
from instance_manager.process.containers.runtime import ContainerState
from instance_manager.types import FailureClass, InstanceFailure, InstanceSpec

_RUNTIME_FAILED, _NOT_EXECUTABLE, _NOT_FOUND = 125, 126, 127  # exit codes of `docker run` and `podman run`
_FIRST_SIGNAL = 128  # a program that a signal ended has this code plus the signal's number
_LAST_SIGNAL = 192

# What the first process of a container says if it can't run the command.
_INIT_LINE = re.compile(
    r"^\[FATAL tini \(\d+\)\] (exec .*)|^ERROR \(catatonit:\d+\): (failed to exec pid1: .*)"
)
# What `docker run` and `podman run` say themselves; other lines are the engine's.
_OWN_LINE = re.compile(
    r"^(?:docker: |Error: |Error response from daemon: |unknown (?:flag|shorthand flag): |Cannot connect to )"
)
_LOST_LINE = re.compile(r"error waiting for container: |error during connect: ")
_PREFIX = re.compile(r"^(?:docker: |Error: )(?:Error response from daemon: )?")
_C = FailureClass
_SIGNS: tuple[tuple[FailureClass, str, str], ...] = (
    (
        _C.RUNTIME_UNAVAILABLE,
        r"cannot connect to (the docker daemon|podman)|failed to connect to the docker api"
        r"|unable to connect to podman|permission denied while trying to connect",
        "",
    ),
    (
        _C.RUNTIME_UNAVAILABLE,
        r"could not select device driver|unresolvable CDI devices|nvidia-container-(cli|runtime)",
        "; containers get NVIDIA's GPUs by the NVIDIA Container Toolkit",
    ),
    (_C.RUNTIME_UNAVAILABLE, r"container-init binary not found", "; podman's --init needs catatonit"),
    (_C.NAME_TAKEN, r"container name \S+ is already in use|that name is already in use", ""),
    (_C.PORT_IN_USE, r"port is already allocated|address already in use", ""),
    (
        _C.IMAGE_MISSING,
        r"no such image|image not known|pull access denied|manifest (for .* )?(unknown|not found)"
        r"|repository .* not found|did not resolve to an alias|initializing source docker://"
        r"|unable to copy from source|unauthorized|no such host|https?://\S+/v2/|toomanyrequests"
        r"|failed to resolve reference|requested access to the resource",
        "; `IMAGE` is neither on this machine nor to be had from its registry",
    ),
)


def classify_container_exit(
    returncode: int,
    final: ContainerState | None,
    log_tail: Sequence[str],
    patterns: LogPatterns,
    *,
    was_ready: bool,
    image: str = "",
) -> InstanceFailure:
    """The failure of an engine whose client exited by itself. `final`: how its container was found then."""
    if not was_ready and (said := next(filter(None, map(_INIT_LINE.match, reversed(log_tail))), None)):
        message = f"the image can't run the command: {said[1] or said[2]}"
        return InstanceFailure(_C.BAD_ARGUMENTS, message, returncode)
    if not was_ready and returncode in (_RUNTIME_FAILED, _NOT_EXECUTABLE, _NOT_FOUND):
        failure = _of_the_runtime(returncode, final, log_tail, image)
        if failure is not None:
            return failure
    if returncode == _RUNTIME_FAILED and any(map(_LOST_LINE.search, log_tail)):
        message = "the runtime's daemon ended, or lost the container"
        return InstanceFailure(_C.RUNTIME_UNAVAILABLE, message, returncode, None, tuple(log_tail))
    if final is not None and not final.is_running and final.was_out_of_memory:
        message = "the kernel ended it: its container had reached its memory limit"
        return InstanceFailure(_C.OUT_OF_MEMORY, message, final.exit_code, None, tuple(log_tail))
    if _FIRST_SIGNAL < returncode < _LAST_SIGNAL:
        returncode = _FIRST_SIGNAL - returncode
    return classify_exit(returncode, log_tail, patterns, was_ready=was_ready)


def _of_the_runtime(
    returncode: int, final: ContainerState | None, log_tail: Sequence[str], image: str
) -> InstanceFailure | None:
    """None if the engine itself exited with this code."""
    lines = [line for line in log_tail if _OWN_LINE.match(line)]
    if final is not None and final.error:
        lines.append(final.error)
    if not lines:
        return None
    reason = _PREFIX.sub("", lines[-1]).strip()
    for failure_class, sign, remark in _SIGNS:
        if re.search(sign, lines[-1], re.IGNORECASE):
            return InstanceFailure(failure_class, reason + remark.replace("IMAGE", image), returncode)
    if returncode == _RUNTIME_FAILED or "exec" in reason or "OCI" in reason:
        return InstanceFailure(_C.BAD_ARGUMENTS, reason, returncode)
    return None


def not_executed(spec: InstanceSpec, command: Sequence[str], error: OSError) -> InstanceFailure:
    """The failure of a command that the system can't run."""
    program = command[0] if command else spec.runtime or "its command"
    message = f"{program!r} can't be run: {error.strerror or error}"
    if spec.runtime is None:
        return InstanceFailure(_C.BAD_ARGUMENTS, message)
    return InstanceFailure(_C.RUNTIME_UNAVAILABLE, f"{message}; `runtime: {spec.runtime}` needs it")
