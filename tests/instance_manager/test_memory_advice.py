"""A refusal for lack of memory names what would help, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instance_manager.memory.advice import Limits, advise
from instance_manager.memory.devices import HOST, Device
from instance_manager.memory.victims import Resident

GIB = 1 << 30
NOTHING = "No setting makes it fit: use a smaller or a quantised model."


def resident(name: str, gib: float, *, pinned: bool = False) -> Resident:
    return Resident(f"{name}-1", name, 0, {HOST: int(gib * GIB)}, {}, 0, 0, pinned, 0.0, 0.0)


def limits(budget: float, *, set_to: float | None = None, total: float = 16) -> dict[Device, Limits]:
    allowed = budget if set_to is None else set_to
    return {HOST: Limits(int(budget * GIB), int(allowed * GIB), int(total * GIB))}


def unknown(change: Mapping[str, Any]) -> Mapping[Device, int] | None:
    return None


def weighs(weights: float, cache: float, *, is_wide: bool = False) -> Any:
    """An engine of so many GiB, whose cache follows its flags."""

    def needs_with(change: Mapping[str, Any]) -> Mapping[Device, int]:
        size = weights / 2 if is_wide and "dtype" in change else weights
        small = "max_model_len" in change or "kv_cache_memory_bytes" in change
        return {HOST: int((size + (0.1 if small else cache)) * GIB)}

    return needs_with


def test_the_cache_is_named_where_a_smaller_one_suffices() -> None:
    advice = advise({HOST: 9 * GIB}, "new", [], limits(8), weighs(5, 4))
    assert "lower max_model_len, or a smaller KV cache (kv_cache_memory_bytes)" in advice
    assert "raise HOST_MEMORY (it allows 8.00 GiB of 16.00 GiB)" in advice
    assert "dtype" not in advice


def test_the_cache_is_not_named_where_the_weights_are_too_large() -> None:
    advice = advise({HOST: 19 * GIB}, "new", [], limits(8, total=12), weighs(18, 1))
    assert advice == NOTHING


def test_a_narrower_type_is_named_where_the_weights_are_wide() -> None:
    advice = advise({HOST: 13 * GIB}, "new", [], limits(8, total=8), weighs(12, 1, is_wide=True))
    assert advice == "What helps: dtype: bfloat16."


def test_holders_of_memory_are_named_where_their_end_suffices() -> None:
    others = [resident("idle", 2), resident("kept", 5, pinned=True), resident("new", 1)]
    advice = advise({HOST: 6 * GIB}, "new", others, limits(8, total=8), unknown)
    assert advice == "What helps: unpin or stop kept, or stop new-1."
    advice = advise({HOST: 9 * GIB}, "new", others, limits(8, total=8), unknown)
    assert advice == NOTHING


def test_other_programs_are_named_where_they_hold_the_missing_memory() -> None:
    advice = advise({HOST: 6 * GIB}, "new", [], limits(4, set_to=8), unknown)
    assert advice == "What helps: end other programs, which hold 4.00 GiB that engines could use."


def test_host_memory_is_not_suggested_for_a_gpu() -> None:
    gpu = {"GPU-0": Limits(8 * GIB, 8 * GIB, 10 * GIB)}
    assert advise({"GPU-0": 9 * GIB}, "new", [], gpu, unknown) == NOTHING
    assert advise({"GPU-gone": GIB}, "new", [], gpu, unknown) == NOTHING
