"""A refusal for memory says what helps, and nothing that doesn't."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instance_manager.memory.advice import Limits, advise
from instance_manager.memory.eviction import HOST, Device, Resident

GIB = 1 << 30
NOTHING = "No setting makes it fit: take a smaller or a quantised model."


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


def test_the_cache_is_named_where_a_smaller_one_would_do() -> None:
    told = advise({HOST: 9 * GIB}, "new", [], limits(8), weighs(5, 4))
    assert "lower max_model_len, or a smaller KV cache (kv_cache_memory_bytes)" in told
    assert "raise HOST_MEMORY (it allows 8.00 GiB of 16.00 GiB)" in told
    assert "dtype" not in told


def test_the_cache_is_not_named_where_the_weights_are_too_large() -> None:
    told = advise({HOST: 19 * GIB}, "new", [], limits(8, total=12), weighs(18, 1))
    assert told == NOTHING


def test_a_narrower_type_is_named_where_the_weights_are_wide() -> None:
    told = advise({HOST: 13 * GIB}, "new", [], limits(8, total=8), weighs(12, 1, is_wide=True))
    assert told == "What helps: dtype: bfloat16."


def test_who_keeps_memory_is_named_where_that_is_enough() -> None:
    others = [resident("idle", 2), resident("kept", 5, pinned=True), resident("new", 1)]
    told = advise({HOST: 6 * GIB}, "new", others, limits(8, total=8), unknown)
    assert told == "What helps: unpin or stop kept, or stop new-1."
    told = advise({HOST: 9 * GIB}, "new", others, limits(8, total=8), unknown)
    assert told == NOTHING


def test_other_programs_are_named_where_they_hold_what_is_missing() -> None:
    told = advise({HOST: 6 * GIB}, "new", [], limits(4, set_to=8), unknown)
    assert told == "What helps: end other programs, which hold 4.00 GiB of what engines might have."


def test_of_a_gpu_host_memory_is_no_lever() -> None:
    gpu = {"GPU-0": Limits(8 * GIB, 8 * GIB, 10 * GIB)}
    assert advise({"GPU-0": 9 * GIB}, "new", [], gpu, unknown) == NOTHING
    assert advise({"GPU-gone": GIB}, "new", [], gpu, unknown) == NOTHING
