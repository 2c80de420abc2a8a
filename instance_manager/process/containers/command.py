"""The command that runs an engine in a container: `docker run …` or `podman run …`. Pure."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RUNTIMES = ("docker", "podman")
OWNER_LABEL, RUN_LABEL, INSTANCE_LABEL = "berth.owner", "berth.run", "berth.instance"

_NETWORK = ("--network", "--net")
_PUBLISH = ("-p", "--publish", "-P", "--publish-all")
_SHARED_MEMORY = ("--ipc", "--shm-size")
_SECURITY = ("--security-opt",)
_PLACEHOLDER = re.compile(r"\{(port|host|model)\}")
_SHM_SIZE = "8g"  # a limit, taken as it is used; the default of 64 MB is too little for PyTorch's workers


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """How to run an engine in a container, apart from what each run adds."""

    runtime: str  # one of RUNTIMES
    image: str
    model: str = ""  # for {model}
    mounts: tuple[str, ...] = ()  # "SOURCE:TARGET[:OPTIONS]"
    folders: tuple[Path, ...] = ()  # sources of mounts that must exist first
    env: Mapping[str, str] = field(default_factory=dict)  # in the container only
    variables: frozenset[str] = frozenset()  # that the engine is given by name, whatever they are called
    gpus: str | None = None  # None = those that the instance was given
    run_args: tuple[str, ...] = ()

    @property
    def is_on_host_network(self) -> bool:
        """Whether the engine listens on this machine itself. Only Linux's containers can."""
        named = values_of(self.run_args, _NETWORK)
        return named[-1] == "host" if named else sys.platform == "linux"


@dataclass(frozen=True, slots=True)
class ContainerRun:
    """One run of an instance, as its container carries it."""

    instance_id: str
    generation: int  # number of the run
    token: str  # of the run; names its owner

    @property
    def name(self) -> str:
        return f"berth-{self.instance_id}-{self.generation}"

    @property
    def run_id(self) -> str:
        return run_id_of(self.token)

    @property
    def labels(self) -> dict[str, str]:
        return {
            INSTANCE_LABEL: self.instance_id,
            OWNER_LABEL: owner_of(self.token),
            RUN_LABEL: self.run_id,
        }


def run_id_of(token: str) -> str:
    """Proves that a container belongs to a run: the token itself stays out of argv and labels."""
    return hashlib.sha256(token.encode()).hexdigest()[:32]


def owner_of(token: str) -> str:
    return token.partition(".")[0]


def run_command(
    program: str,
    plan: ContainerPlan,
    run: ContainerRun,
    argv: Sequence[str],
    *,
    host: str,
    port: int,
    env: Sequence[str],
    id_file: Path,
    flags: Sequence[str],
) -> list[str]:
    """The whole command. `argv`: what runs in the image; `env`: values of `-e`; `flags`: of this machine."""
    values = {"host": host, "port": str(port), "model": plan.model}
    run_args = [_PLACEHOLDER.sub(lambda match: values[match[1]], one) for one in plan.run_args]
    return [
        *(program, "run", "--name", run.name),
        *(part for key, value in run.labels.items() for part in ("--label", f"{key}={value}")),
        *("--cidfile", str(id_file), "--log-driver", "none"),  # its output is in Berth's log
        *_network(plan, run_args, host, port),
        *([] if _is_given(run_args, _SHARED_MEMORY) else ["--shm-size", _SHM_SIZE]),
        *_security(plan, run_args),
        *(part for mount in plan.mounts for part in ("-v", mount)),
        *(part for one in env for part in ("-e", one)),
        *flags,
        *run_args,
        plan.image,
        *argv,
    ]


def gpu_flags(plan: ContainerPlan, devices: Sequence[str] | None, *, has_gpus: bool) -> list[str]:
    """The flags that show GPUs to the container. `has_gpus`: whether this machine has any of NVIDIA's."""
    wanted = plan.gpus
    if wanted is None:
        if devices is None:
            wanted = "all" if has_gpus else "none"
        else:
            wanted = f"device={','.join(devices)}" if devices else "none"
    if wanted == "none":
        return []
    if plan.runtime == "podman":
        count = range(int(wanted)) if wanted.isdecimal() else None  # docker's number of GPUs
        names = wanted.removeprefix("device=").split(",") if count is None else map(str, count)
        return [part for name in names for part in ("--device", f"nvidia.com/gpu={name}")]
    # The value is a line of CSV: commas within one of its fields need quotes.
    return ["--gpus", f'"{wanted}"' if "," in wanted else wanted]


def values_of(arguments: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The values of these flags, in `--flag value` and `--flag=value`."""
    found = []
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in flags:
            found.append(value if equals else "".join(arguments[index + 1 : index + 2]))
    return found


def _is_given(arguments: Sequence[str], flags: Sequence[str]) -> bool:
    return any(argument.partition("=")[0] in flags for argument in arguments)


def _network(plan: ContainerPlan, run_args: Sequence[str], host: str, port: int) -> list[str]:
    """On the machine's own network, or a published port that only this machine reaches."""
    if plan.is_on_host_network:
        return [] if _is_given(run_args, _NETWORK) else ["--network", "host"]
    if _is_given(run_args, _PUBLISH):
        return []
    address = f"[{host}]" if ":" in host else host
    return ["-p", f"{address}:{port}:{port}"]


def _security(plan: ContainerPlan, run_args: Sequence[str]) -> list[str]:
    """SELinux would keep the container from mounted folders, which other programs use as well."""
    if plan.runtime != "podman" or _is_given(run_args, _SECURITY):
        return []
    return ["--security-opt", "label=disable"]
