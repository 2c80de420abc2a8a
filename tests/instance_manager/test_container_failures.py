"""Why an engine in a container failed: the words of docker 20 and 28 and podman 4, and the engine's own."""

from __future__ import annotations

from typing import Any

import pytest

from instance_manager.backends.log_patterns import ANY_SERVER
from instance_manager.lifecycle.container_failures import classify_container_exit
from instance_manager.process.containers.runtime import ContainerState
from instance_manager.types import FailureClass as C
from instance_manager.types import InstanceFailure

OCI = "OCI runtime create failed: runc create failed: unable to start container process"
CALL_AGAIN = ("", "Run 'docker run --help' for more information")


def failure(returncode: int, *log: str, was_ready: bool = False, **state: Any) -> InstanceFailure:
    fields = {"is_running": False, "pid": 0, "exit_code": returncode, "was_out_of_memory": False, "error": ""}
    final = ContainerState("id", "berth-x-1", {}, **{**fields, **state})
    return classify_container_exit(returncode, final, log, ANY_SERVER, was_ready=was_ready, image="an/image")


@pytest.mark.parametrize(
    ("returncode", "log", "expected"),
    [
        (
            125,
            ("docker: Error response from daemon: No such image: an/image:1", *CALL_AGAIN),
            C.IMAGE_MISSING,
        ),
        (
            125,
            (
                "Unable to find image 'an/image:latest' locally",
                "docker: Error response from daemon: pull access denied for an/image, …",
                *CALL_AGAIN,
            ),
            C.IMAGE_MISSING,
        ),
        (
            125,
            (
                'docker: Error response from daemon: Get "https://registry/v2/": dial tcp: no such host',
                *CALL_AGAIN,
            ),
            C.IMAGE_MISSING,
        ),
        (
            125,
            ("docker: Error response from daemon: manifest for an/image:9 not found: manifest unknown",),
            C.IMAGE_MISSING,
        ),
        (125, ("Error: an/image:1: image not known",), C.IMAGE_MISSING),
        (
            125,
            ('Error: short-name "x" did not resolve to an alias and no unqualified-search …',),
            C.IMAGE_MISSING,
        ),
        (
            125,
            ("Error: initializing source docker://localhost/x:1: pinging container registry",),
            C.IMAGE_MISSING,
        ),
        (
            125,
            (
                "docker: Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?",
                *CALL_AGAIN,
            ),
            C.RUNTIME_UNAVAILABLE,
        ),
        (125, ("docker: failed to connect to the docker API at unix:///x",), C.RUNTIME_UNAVAILABLE),
        (
            126,
            ("docker: permission denied while trying to connect to the Docker daemon socket at unix:///x",),
            C.RUNTIME_UNAVAILABLE,
        ),
        (125, ("Error: unable to connect to Podman socket: dial unix /x",), C.RUNTIME_UNAVAILABLE),
        (
            125,
            ('docker: Error response from daemon: could not select device driver "" with …',),
            C.RUNTIME_UNAVAILABLE,
        ),
        (
            126,
            ("Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=all",),
            C.RUNTIME_UNAVAILABLE,
        ),
        (
            125,
            (
                'docker: Error response from daemon: Conflict. The container name "/x" is already in use …',
                *CALL_AGAIN,
            ),
            C.NAME_TAKEN,
        ),
        (
            125,
            ('Error: creating container storage: the container name "x" is already in use by 7',),
            C.NAME_TAKEN,
        ),
        (
            125,
            ("docker: Error response from daemon: Bind for :9 failed: port is already allocated",),
            C.PORT_IN_USE,
        ),
        (125, ("unknown flag: --frob", "", "Usage:  docker run"), C.BAD_ARGUMENTS),
        (125, ("Error: unknown flag: --frob", "See 'podman run --help'"), C.BAD_ARGUMENTS),
        (125, ("docker: invalid reference format",), C.BAD_ARGUMENTS),
        (125, ("docker: Error response from daemon: bind source path does not exist: /x",), C.BAD_ARGUMENTS),
        (
            127,
            (f'docker: Error response from daemon: {OCI}: exec: "/x": no such file or directory',),
            C.BAD_ARGUMENTS,
        ),
        (
            126,
            (f'Error: runc: {OCI}: exec: "/tmp": permission denied: OCI permission denied',),
            C.BAD_ARGUMENTS,
        ),
        (127, ("[FATAL tini (7)] exec /x failed: No such file or directory",), C.BAD_ARGUMENTS),
        (1, ("ERROR (catatonit:6): failed to exec pid1: No such file or directory",), C.BAD_ARGUMENTS),
        # The engine's own.
        (1, ("Error: something of the engine's",), C.CRASHED),
        (125, ("loading", "giving up"), C.CRASHED),
        (127, ("sh: 1: nothing: not found",), C.CRASHED),
        (2, ("vllm: error: unrecognized arguments: --x",), C.BAD_ARGUMENTS),
        (1, ("torch.OutOfMemoryError: CUDA out of memory",), C.OUT_OF_MEMORY),
    ],
)
def test_the_runtime_s_words_have_a_class(returncode: int, log: tuple[str, ...], expected: C) -> None:
    found = failure(returncode, *log)
    assert (found.failure_class, found.exit_code) == (expected, returncode)


def test_the_reason_is_the_runtime_s_without_its_preamble() -> None:
    found = failure(125, "docker: Error response from daemon: No such image: an/image:1", *CALL_AGAIN)
    assert found.message.startswith("No such image: an/image:1; `an/image` is neither on this machine nor")
    assert failure(125, "docker: invalid reference format").message == "invalid reference format"


def test_a_signal_and_the_memory_limit_are_told_from_exit_codes() -> None:
    assert failure(137).signal == "SIGKILL"
    assert failure(139, was_ready=True).signal == "SIGSEGV"
    limited = failure(137, "loading", was_ready=True, was_out_of_memory=True)
    assert limited.failure_class is C.OUT_OF_MEMORY and "memory limit" in limited.message


def test_a_daemon_that_ends_under_an_engine_is_named() -> None:
    lost = 'time="…" level=error msg="error waiting for container: unexpected EOF"'
    assert failure(125, "serving", lost, was_ready=True).failure_class is C.RUNTIME_UNAVAILABLE


def test_once_it_was_ready_its_lines_are_the_engine_s() -> None:
    assert (
        failure(125, "docker: Error response from daemon: No such image: x", was_ready=True).failure_class
        is C.CRASHED
    )
