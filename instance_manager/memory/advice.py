"""What would make a model fit that has been refused for want of memory: only what does help is said. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instance_manager.memory.eviction import HOST, Device, Resident

_GIB = 1 << 30
_SHORT_CONTEXT = 2048
_SMALL_CACHE_BYTES = _GIB // 4

# Changes of an engine's flags, and how to call them. Tried one by one.
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

    budget: int  # what all engines may hold
    set_to: int  # what the settings allow; the budget is less where other programs have the rest
    total: int  # what there is


Needs = Callable[[Mapping[str, Any]], Mapping[Device, int] | None]  # with flags changed so; None: not known


def advise(
    need: Mapping[Device, int],
    model_name: str,
    residents: Sequence[Resident],
    limits: Mapping[Device, Limits],
    needs_with: Needs,
) -> str:
    """One sentence for a model that `need` is too much of."""
    staying = [one for one in residents if one.pinned or one.model_name == model_name]
    kept = {device: sum(one.held.get(device, 0) for one in staying) for device in need}
    short = [d for d, size in need.items() if size and size + kept[d] > _limit_of(limits, d).budget]
    levers = _of_holders(need, short, staying, model_name, limits)
    levers += _of_flags(need, short, kept, limits, needs_with)
    for device in short:
        levers += _of_device(need[device] + kept[device], device, _limit_of(limits, device))
    if not levers:
        return "No setting makes it fit: take a smaller or a quantised model."
    text = ", or ".join(dict.fromkeys(levers))
    return f"What helps: {text}."


def _of_holders(
    need: Mapping[Device, int],
    short: Sequence[Device],
    staying: Sequence[Resident],
    model_name: str,
    limits: Mapping[Device, Limits],
) -> list[str]:
    """Whoever keeps memory there, if it would be enough without them."""
    if any(need[device] > _limit_of(limits, device).budget for device in short):
        return []
    levers = []
    for one in staying:
        if any(one.held.get(device) for device in short):
            what = "stop" if one.model_name == model_name else "unpin or stop"
            name = one.instance_id if one.model_name == model_name else one.model_name
            levers.append(f"{what} {name}")
    return levers


def _of_flags(
    need: Mapping[Device, int],
    short: Sequence[Device],
    kept: Mapping[Device, int],
    limits: Mapping[Device, Limits],
    needs_with: Needs,
) -> list[str]:
    """Those that would make enough of a difference, by the estimate."""
    now = needs_with({})
    if now is None:
        return []
    levers = []
    for words, change in _CHANGES:
        then = needs_with(change)
        if then is not None and all(
            need[d] - now.get(d, 0) + then.get(d, 0) + kept[d] <= _limit_of(limits, d).budget for d in short
        ):
            levers.append(words)
    return levers


def _of_device(wanted: int, device: Device, limit: Limits) -> list[str]:
    """Settings, and other programs, as far as the machine has that much at all."""
    levers = []
    if device == HOST and limit.set_to < wanted <= limit.total:
        levers.append(f"raise HOST_MEMORY (it allows {_gib(limit.set_to)} of {_gib(limit.total)})")
    elsewhere = limit.set_to - limit.budget
    if elsewhere > 0 and wanted <= limit.total:
        where = "" if device == HOST else f" of {device}"
        levers.append(f"end other programs, which hold {_gib(elsewhere)}{where} of what engines might have")
    return levers


def _limit_of(limits: Mapping[Device, Limits], device: Device) -> Limits:
    return limits.get(device, Limits(0, 0, 0))


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"
