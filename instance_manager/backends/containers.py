"""Turns the fields of a spec about its container into a plan, or refuses them by name."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from instance_manager.backends.base import Backend, LaunchPlan
from instance_manager.backends.model_paths import expand_home, find_model
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec, ModelNotFound
from instance_manager.process.containers.command import RUNTIMES, ContainerPlan
from instance_manager.process.environment import OWNED_ENV, child_environment
from instance_manager.process.hub_cache import hub_cache
from instance_manager.types import InstanceSpec

_NEED_RUNTIME = ("image", "volumes", "gpus", "run_args")
_IMAGE = re.compile(r"[A-Za-z0-9][^\s\x00-\x1f\x7f]*")
_GPUS = re.compile(r"all|none|\d+|device=[^\s,]+(,[^\s,]+)*")
_CACHE_NAMES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")  # an image may set the old one
# Flags of `docker run` that decide how Berth finds the container, and sees and ends it.
_OWNED = frozenset(
    (
        *("--name", "--detach", "--rm", "--cidfile", "--restart", "--sig-proxy", "--log-driver", "--attach"),
        *("--interactive", "--tty", "-a", "--replace", "--conmon-pidfile", "--pod"),
    )
)
_OWNED_LETTERS = re.compile(r"-[ditP]*[dit][ditP]*")  # -it and the like
_OWNED_LABEL = re.compile(r"(?:--label=|-l)?berth\..*")


def check_container_fields(spec: InstanceSpec, backend: Backend) -> None:
    """Raise InvalidSpec for a field that can't be right."""
    if spec.runtime is None:
        if given := next((name for name in _NEED_RUNTIME if getattr(spec, name)), None):
            raise InvalidSpec(f"{given} needs `runtime`: {' or '.join(RUNTIMES)}", param=given)
        return
    if spec.runtime not in RUNTIMES:
        raise InvalidSpec(f"runtime must be {' or '.join(RUNTIMES)}, not {spec.runtime!r}", param="runtime")
    if backend.in_image is None:
        raise InvalidSpec(f"engine {spec.engine!r} can't run in a container", param="runtime")
    image = spec.image or backend.image
    if image is None:
        raise InvalidSpec(f"runtime: {spec.runtime} needs `image`, a container image", param="image")
    if not _IMAGE.fullmatch(image):
        raise InvalidSpec(f"image {image!r} isn't the name of a container image", param="image")
    if spec.gpus is not None and not _GPUS.fullmatch(spec.gpus):
        raise InvalidSpec(
            f"gpus must be all, none, a number or device=ID,ID, not {spec.gpus!r}", param="gpus"
        )
    for volume in spec.volumes:
        _check_volume(volume)
    _check_run_args(spec.run_args)


def _check_volume(volume: object) -> None:
    is_text = isinstance(volume, str) and "\0" not in volume
    source, colon, target = str(volume).partition(":")
    if not is_text or not source or not colon or not target.startswith("/"):
        raise InvalidSpec(
            f'volumes must list "SOURCE:TARGET" or "SOURCE:TARGET:ro", not {volume!r}', param="volumes"
        )


def _check_run_args(run_args: object) -> None:
    arguments = list(run_args) if isinstance(run_args, list | tuple) else []
    if not all(isinstance(one, str) and "\0" not in one for one in arguments) or (run_args and not arguments):
        raise InvalidSpec("run_args must be a list of strings", param="run_args")
    if arguments and not str(arguments[0]).startswith("-"):
        raise InvalidSpec(f"run_args must begin with a flag, not {arguments[0]!r}", param="run_args")
    for argument in map(str, arguments):
        name = argument.partition("=")[0]
        if name in _OWNED or _OWNED_LETTERS.fullmatch(argument) or _OWNED_LABEL.fullmatch(argument):
            raise InvalidSpec(f"run_args: {argument} can't be set: Berth decides it", param="run_args")


def in_container(
    plan: LaunchPlan, spec: InstanceSpec, backend: Backend, config: ManagerConfig
) -> ContainerPlan:
    """The plan of its container. The fields have been checked."""
    given = {*spec.env, *plan.env, *OWNED_ENV, backend.api_key_variable}
    model, others = _model_paths(spec, backend, config), _argument_paths(plan, backend)
    mounts = [f"{folder}:{folder}:ro" for folder in map(mounted_folder, (*model, *others))]
    folders: list[Path] = []
    env: dict[str, str] = {}
    if backend.finds_model and not model and not any(path.suffix == ".gguf" for path in others):
        hub_mounts, folders, env = _hub_mounts(child_environment(os.environ, config.engine_env, spec.env))
        mounts = [*hub_mounts, *mounts]
    mounts += [_with_home(volume) for volume in spec.volumes]
    return ContainerPlan(
        runtime=spec.runtime or "",
        image=spec.image or backend.image or "",
        model=spec.model_name,
        mounts=tuple(dict.fromkeys(mounts)),
        folders=tuple(folders),
        env={name: value for name, value in env.items() if name not in spec.env},
        variables=frozenset(given),
        gpus=spec.gpus,
        run_args=tuple(spec.run_args),
    )


def _model_paths(spec: InstanceSpec, backend: Backend, config: ManagerConfig) -> list[Path]:
    """The model's folder or file, if it is on this machine."""
    model = spec.model_name
    if backend.finds_model:
        with contextlib.suppress(ModelNotFound):  # some kinds have names of their own for files
            model = find_model(model, config.model_dirs)
    return [Path(model)] if model.startswith("/") and os.path.exists(model) else []


def _argument_paths(plan: LaunchPlan, backend: Backend) -> list[Path]:
    """Existing paths among its flags: templates, adapters, other models. A command's are the image's."""
    if not backend.takes_params:
        return []
    arguments = plan.argv("127.0.0.1", 0)[len(backend.in_image or ()) :]
    return [*_paths_in(plan.params), *_paths_in(arguments)]


def _hub_mounts(environ: Mapping[str, str]) -> tuple[list[str], list[Path], dict[str, str]]:
    """The cache, writable, and the file with the user's token, as huggingface_hub would find them."""
    cache = hub_cache(environ)
    mounts, env = [f"{cache}:{cache}"], dict.fromkeys(_CACHE_NAMES, str(cache))
    token = Path(environ.get("HF_TOKEN_PATH") or cache.parent / "token")
    if not environ.get("HF_TOKEN") and token.is_file():
        mounts.append(f"{token}:{token}:ro")
        env["HF_TOKEN_PATH"] = str(token)
    return mounts, [cache], env


def mounted_folder(path: Path) -> Path:
    """What to mount for a model's file or folder: in the hub's cache, files are links to a folder beside."""
    for parent in (path, *path.parents):
        if parent.name.startswith("models--") and (parent / "blobs").is_dir():
            return parent
    # A GGUF model may be in several files.
    return path.parent if path.suffix == ".gguf" and path.is_file() else path


def _paths_in(value: Any) -> Iterator[Path]:
    """Existing absolute paths in a value."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _paths_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _paths_in(item)
    elif isinstance(value, str):
        for text in (value, value.partition("=")[2]):  # an adapter is NAME=PATH
            if text.startswith("/") and len(text) > 1 and os.path.exists(text):
                yield Path(text)


def _with_home(volume: str) -> str:
    source, _, target = volume.partition(":")
    return f"{expand_home(source)}:{target}" if source.startswith("~") else volume
