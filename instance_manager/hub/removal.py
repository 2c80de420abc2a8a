"""Deletes a downloaded model from the hub's cache; never a folder that Berth didn't download."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path

from instance_manager.backends.model_paths import find_model
from instance_manager.errors import ManagerError, ModelNotFound, WrongState
from instance_manager.fleet.models import Model
from instance_manager.fleet.profiles import ModelSource
from instance_manager.gguf.names import sets_of, split_tag, with_tag
from instance_manager.hub.files import check_hub_id
from instance_manager.hub.process import HubProcessDied, hub_process
from instance_manager.manager import InstanceManager
from instance_manager.process.environment import child_environment
from instance_manager.process.hub_cache import hub_cache


class ModelInUse(WrongState):
    """An instance or a download uses the model's files."""

    code = "model_in_use"


class ModelNotOurs(WrongState):
    """The model is a folder that Berth didn't download."""

    code = "model_not_downloaded"


class RemovalFailed(ManagerError):
    """The files could not be deleted; the message gives the reason."""

    code = "removal_failed"


def paths_in_use(manager: InstanceManager) -> list[str]:
    """What the engines that run have loaded: paths, or hub ids. Blocks for a moment."""
    config = manager.config
    cache = hub_cache(child_environment(os.environ, config.engine_env))
    found = []
    for instance in manager.list():
        with suppress(ModelNotFound):
            found.append(find_model(instance.model_name, config.model_dirs, cache))
    return found


def is_among(paths: Sequence[str], model: str) -> bool:
    """Whether one of these paths is of the model `owner/name`, or of its quantisation if it names one."""
    repository, tag = split_tag(model)
    folder = f"models--{repository.replace('/', '--')}"
    inside = [path for path in paths if folder in Path(path).parts]
    return any(tag is None or _is_quantisation(Path(path), tag) for path in inside)


def _is_quantisation(path: Path, tag: str) -> bool:
    (found,) = sets_of([path.name]) or (None,)
    return found is not None and with_tag([found], tag) is not None


async def remove_files_of(
    model: Model, name: str, manager: InstanceManager, is_pulling: Callable[[str], bool]
) -> int:
    """Delete the files of a model that goes by `name`. Returns the bytes freed. Raises as `remove_model`.

    An alias of a quantisation stands for that one, never for its whole repository.
    """
    is_found = model.profile is not None and model.profile.source is ModelSource.DISCOVERED
    is_quantisation = split_tag(model.name)[1] is not None
    served = await asyncio.to_thread(paths_in_use, manager)
    return await remove_model(
        model.name if is_found or is_quantisation else name,
        env=manager.config.engine_env,
        model_dirs=manager.config.model_dirs,
        in_use=lambda repository: bool(model.live) or is_pulling(repository) or is_among(served, repository),
    )


async def remove_model(
    model: str, *, env: Mapping[str, str], model_dirs: Sequence[Path], in_use: Callable[[str], bool]
) -> int:
    """Delete a model's revisions and partial downloads, or one quantisation. Returns the bytes freed.

    `env`: HF_HOME and the like; `in_use`: whether an instance or a download uses its files.
    Raises ModelNotOurs, ModelInUse, ModelNotFound, InvalidSpec, RemovalFailed and HubProcessDied.
    """
    found = find_model(model, model_dirs)
    if found != model or Path(found).is_absolute():
        raise ModelNotOurs(
            f"{model!r} is {found}, which Berth didn't download; delete it yourself",
            param="model",
        )
    check_hub_id(model)
    if in_use(model):
        raise ModelInUse(
            f"model {model!r} is in use: stop its instances (`berth stop {model}`) or end its download first"
        )
    async with hub_process("rm", model, env=env) as child, aclosing(child.lines()) as lines:
        async for line in lines:
            if "error" not in line:
                return int(line["freed_bytes"])
            message = str(line["error"]["message"])
            if line["error"]["code"] in ("model_not_found", "quantization_not_found"):
                raise ModelNotFound(message, param="model")
            raise RemovalFailed(message)
    raise HubProcessDied("the process that deletes models ended without a result; see Berth's log")
