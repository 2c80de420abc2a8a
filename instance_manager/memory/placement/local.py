"""Which GPUs of this machine an instance gets. Pure: the GPUs' current state is passed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instance_manager.errors import InvalidSpec, NoSuchDevice
from instance_manager.memory.gpu import Gpu, find_gpu
from instance_manager.memory.kv_cache_size import quantity


def num_gpus_of(params: Mapping[str, Any]) -> int:
    """How many GPUs an engine with these flags computes on where there are some."""
    if params.get("device") == "cpu":  # its processes share the main memory, however many they are
        return 0
    return quantity(params.get("tensor_parallel_size", params.get("tp"))) or 1


def choose_devices(
    gpus: Sequence[Gpu], count: int, need_bytes_each: int, requested: Sequence[str] | None
) -> tuple[str, ...]:
    """The UUIDs of the GPUs for an instance that needs `count` of them, `need_bytes_each` on each.

    `requested` (indices or UUIDs, kept in their order) decides; None leaves the choice to Berth: the emptiest
    GPUs with enough free memory, of one model if possible. If none has enough free, the emptiest that are
    large enough: memory has to be freed there. Raises NoSuchDevice, and InvalidSpec for invalid requests.
    """
    if requested is not None:
        return _requested(gpus, count, requested)
    if count > len(gpus):
        raise NoSuchDevice(
            f"the model needs {_counted(count)}, but {describe_gpus(gpus)}",
            param="devices",
        )
    if count == 0:
        return ()
    best = max(_candidates(gpus, count), key=lambda chosen: _preference(chosen, need_bytes_each))
    return tuple(gpu.uuid for gpu in sorted(best, key=lambda gpu: gpu.index))


def describe_gpus(gpus: Sequence[Gpu]) -> str:
    """The available GPUs, for messages."""
    listed = ", ".join(f"{gpu.index} = {gpu.uuid} ({gpu.name})" for gpu in gpus)
    if not gpus:
        return "there is no GPU that Berth can see"
    return f"there {'is' if len(gpus) == 1 else 'are'} {_counted(len(gpus))}: {listed}"


def _requested(gpus: Sequence[Gpu], count: int, requested: Sequence[str]) -> tuple[str, ...]:
    uuids: list[str] = []
    for name in requested:
        gpu = find_gpu(gpus, name)
        if gpu is None:
            raise NoSuchDevice(f"there is no device {name!r}; {describe_gpus(gpus)}", param="devices")
        if gpu.uuid in uuids:
            raise InvalidSpec(f"devices lists GPU {gpu.index} ({gpu.uuid}) twice", param="devices")
        uuids.append(gpu.uuid)
    if uuids and len(uuids) < count:
        raise InvalidSpec(
            f"devices lists {_counted(len(uuids))}, but the model is spread over {count}: list {count}, or "
            f"lower tensor_parallel_size to {len(uuids)}",
            param="devices",
        )
    return tuple(uuids)


def _candidates(gpus: Sequence[Gpu], count: int) -> list[list[Gpu]]:
    """The emptiest `count` GPUs of each model that has enough; of all models if none has."""
    kinds: dict[tuple[str, int], list[Gpu]] = {}
    for gpu in gpus:
        kinds.setdefault((gpu.name, gpu.total_bytes), []).append(gpu)
    groups = [kind for kind in kinds.values() if len(kind) >= count] or [list(gpus)]
    return [sorted(group, key=lambda gpu: (-gpu.free_bytes, gpu.index))[:count] for group in groups]


def _preference(chosen: Sequence[Gpu], need_bytes_each: int) -> tuple[bool, bool, int, int]:
    """A sort key; the fullest GPU of the set decides."""
    free = min(gpu.free_bytes for gpu in chosen)
    large_enough = min(gpu.total_bytes for gpu in chosen) >= need_bytes_each
    return free >= need_bytes_each, large_enough, free, -min(gpu.index for gpu in chosen)


def _counted(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
