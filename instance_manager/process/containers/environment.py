"""Which variables an engine's container gets. Pure.

Their values travel in the environment of `docker run`, named by `-e NAME`, so that `ps` shows none. Only
those that `docker run` itself would read are given by value: in a container, PATH isn't the program's own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

# Of Berth's own environment, what engines read; the rest describes this machine, not the container.
_ENGINES_OWN = re.compile(
    r"(HF|HUGGING_FACE|HUGGINGFACE|TRANSFORMERS|VLLM|SGLANG|LLAMA_ARG|NCCL|GLOO|PYTORCH|TORCH|CUDA|OMP|MKL|BERTH)_.+"
    r"|(?i:(https?|no|all)_proxy)|TZ|TOKENIZERS_PARALLELISM|PYTHONUNBUFFERED"
)
# Paths and devices of this machine.
_OF_THIS_MACHINE = re.compile(
    r"CUDA_(VISIBLE_DEVICES|HOME|PATH|ROOT)|CUDA_DEVICE_ORDER"
    r"|HF_HOME|HF_HUB_CACHE|HUGGINGFACE_HUB_CACHE|TRANSFORMERS_CACHE|HF_(ASSETS|XET|DATASETS)_CACHE|HF_TOKEN_PATH"
    r"|TORCH_HOME|VLLM_CACHE_ROOT|VLLM_CONFIG_ROOT|.*_(DIR|CACHE|HOME|ROOT|PATH|FILE|PYTHON|COMMAND)"
)
# What the runtime's program reads itself.
_OF_THE_PROGRAM = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TMPDIR|LANG|LC_.*|XDG_.*|DBUS_.*|LD_.*|NOTIFY_SOCKET|LISTEN_.*|SSH_.*"
    r"|DOCKER_.*|BUILDKIT_.*|CONTAINERS?_.*|PODMAN_.*|STORAGE_.*|REGISTRY_AUTH_FILE|_CONTAINERS_.*|GODEBUG|GOTRACEBACK"
)


def container_variables(env: Mapping[str, str], chosen: Collection[str]) -> list[str]:
    """The names, of an engine's whole environment. `chosen`: given on purpose, whatever they are called."""
    return [name for name in env if name in chosen or _is_for_engines(name)]


def values_of_e(
    env: Mapping[str, str], own: Mapping[str, str], chosen: Collection[str]
) -> tuple[list[str], dict[str, str]]:
    """The values of `-e`, and the environment of the program that gets them.

    `env`: the engine's; `own`: what the program itself is to see of those variables that it reads.
    """
    names = container_variables(env, chosen)
    inline = {name for name in names if _OF_THE_PROGRAM.fullmatch(name)}
    program_env = {name: value for name, value in env.items() if name not in inline}
    program_env |= {name: own[name] for name in inline if name in own}
    return [f"{name}={env[name]}" if name in inline else name for name in names], program_env


def _is_for_engines(name: str) -> bool:
    return _ENGINES_OWN.fullmatch(name) is not None and _OF_THIS_MACHINE.fullmatch(name) is None
