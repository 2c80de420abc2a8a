"""What would make a model fit that was refused for lack of memory: only changes that suffice. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instance_manager.memory.devices import HOST, Device
from instance_manager.memory.victims import Resident

_GIB = 1 << 30
_SHORT_CONTEXT = 2048
_SMALL_CACHE_BYTES = _GIB // 4

# Changes of an engine's flags, with their names in the advice. Tried one by one.
_CHANGES: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("lower max_model_len", {"max_model_len": _SHORT_CONTEXT}),
    (
        "a smaller KV cache (kv_cache_memory_bytes)",
        {"kv_cache_memory_bytes": _SMALL_CACHE_BYTES, "num_gpu_blocks_override": None},
    ),
    ("dtype: bfloat16", {"dtype": "bfloat16"}),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one device, in bytes."""

    budget: int  # that all engines together may hold
    set_to: int  # allowed by the settings; the budget is less where other programs hold the rest
    total: int  # of the device


Needs = Callable[[Mapping[str, Any]], Mapping[Device, int] | None]  # with these flags changed; None: unknown


def advise(
    need: Mapping[Device, int],
    model_name: str,
    residents: Sequence[Resident],
    limits: Mapping[Device, Limits],
    needs_with: Needs,
) -> str:
    """One sentence for a model whose `need` doesn't fit."""
    staying = [one for one in residents if one.pinned or one.model_name == model_name]
    kept = {device: sum(one.held.get(device, 0) for one in staying) for device in need}
    short = [d for d, size in need.items() if size and size + kept[d] > _limit_of(limits, d).budget]
    options = _from_holders(need, short, staying, model_name, limits)
    options += _from_flags(need, short, kept, limits, needs_with)
    for device in short:
        options += _from_device(need[device] + kept[device], device, _limit_of(limits, device))
    if not options:
        return "No setting makes it fit: use a smaller or a quantised model."
    text = ", or ".join(dict.fromkeys(options))
    return f"What helps: {text}."


def _from_holders(
    need: Mapping[Device, int],
    short: Sequence[Device],
    staying: Sequence[Resident],
    model_name: str,
    limits: Mapping[Device, Limits],
) -> list[str]:
    """Instances that keep memory there, if stopping all of them suffices."""
    if any(need[device] > _limit_of(limits, device).budget for device in short):
        return []
    options = []
    for one in staying:
        if any(one.held.get(device) for device in short):
            what = "stop" if one.model_name == model_name else "unpin or stop"
            name = one.instance_id if one.model_name == model_name else one.model_name
            options.append(f"{what} {name}")
    return options


def _from_flags(
    need: Mapping[Device, int],
    short: Sequence[Device],
    kept: Mapping[Device, int],
    limits: Mapping[Device, Limits],
    needs_with: Needs,
) -> list[str]:
    """Flag changes that suffice, by the estimate."""
    now = needs_with({})
    if now is None:
        return []
    options = []
    for name, change in _CHANGES:
        then = needs_with(change)
        if then is not None and all(
            need[d] - now.get(d, 0) + then.get(d, 0) + kept[d] <= _limit_of(limits, d).budget for d in short
        ):
            options.append(name)
    return options


def _from_device(wanted: int, device: Device, limit: Limits) -> list[str]:
    """Settings and other programs, if the machine has that much memory at all."""
    options = []
    if device == HOST and limit.set_to < wanted <= limit.total:
        options.append(f"raise HOST_MEMORY (it allows {_gib(limit.set_to)} of {_gib(limit.total)})")
    held_by_others = limit.set_to - limit.budget
    if held_by_others > 0 and wanted <= limit.total:
        where = "" if device == HOST else f" of {device}"
        options.append(f"end other programs, which hold {_gib(held_by_others)}{where} that engines could use")
    return options


def _limit_of(limits: Mapping[Device, Limits], device: Device) -> Limits:
    return limits.get(device, Limits(0, 0, 0))


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"
