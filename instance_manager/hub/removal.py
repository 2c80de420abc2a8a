"""Deletes a downloaded model from the hub's cache; never a folder that Berth didn't download."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

from instance_manager.backends.model_paths import find_model
from instance_manager.errors import ManagerError, ModelNotFound, WrongState
from instance_manager.hub.files import check_hub_id
from instance_manager.hub.process import HubProcessDied, hub_process


class ModelInUse(WrongState):
    """An instance or a download uses the model's files."""

    code = "model_in_use"


class ModelNotOurs(WrongState):
    """The model is a folder that Berth didn't download."""

    code = "model_not_downloaded"


class RemovalFailed(ManagerError):
    """The files could not be deleted; the message gives the reason."""

    code = "removal_failed"


async def remove_model(
    model: str, *, env: Mapping[str, str], model_dirs: Sequence[Path], in_use: Callable[[str], bool]
) -> int:
    """Delete all revisions of a model and its partial downloads. Returns the bytes freed.

    `env`: HF_HOME and the like; `in_use`: whether an instance or a download uses its files.
    Raises ModelNotOurs, ModelInUse, ModelNotFound, InvalidSpec, RemovalFailed and HubProcessDied.
    """
    found = find_model(model, model_dirs)
    if found != model or Path(found).is_absolute():
        raise ModelNotOurs(
            f"{model!r} is the folder {found}, which Berth didn't download; delete it yourself",
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
            if line["error"]["code"] == "model_not_found":
                raise ModelNotFound(message, param="model")
            raise RemovalFailed(message)
    raise HubProcessDied("the process that deletes models ended without a result; see Berth's log")
