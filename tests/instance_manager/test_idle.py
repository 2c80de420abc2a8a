"""When an instance expires. Pure: times are parameters."""

from __future__ import annotations

import pytest

from instance_manager.memory.victims import Resident, expired, next_expiry_check


def idle(
    idle_timeout_s: float = 10.0, *, pinned: bool = False, in_flight: int = 0, last: float = 100.0
) -> Resident:
    return Resident(
        "a", "m", 0, {}, {}, in_flight, 0, pinned, last, resident_since=0.0, idle_timeout_s=idle_timeout_s
    )


def is_expired(resident: Resident, now: float) -> bool:
    return expired([resident], now) == [resident]


def test_it_expires_exactly_one_idle_timeout_after_the_last_activity() -> None:
    assert idle().expires_at == 110.0
    assert not is_expired(idle(), 109.999)
    assert is_expired(idle(), 110.0)


@pytest.mark.parametrize("never", [idle(0.0), idle(pinned=True), idle(in_flight=1)])
def test_without_a_timeout_pinned_or_in_use_it_does_not_expire(never: Resident) -> None:
    assert never.expires_at is None
    assert not is_expired(never, 1e9)


def test_the_next_check_is_the_earliest_possible_expiry() -> None:
    assert next_expiry_check([idle(30.0), idle(10.0), idle(20.0)], 105.0) == 110.0
    assert next_expiry_check([idle(0.0), idle(pinned=True)], 105.0) is None
    assert next_expiry_check([], 105.0) is None


def test_an_instance_in_use_is_checked_again_after_a_full_timeout() -> None:
    assert next_expiry_check([idle(in_flight=2)], 500.0) == 510.0


def test_following_the_checks_finds_the_expiry_exactly() -> None:
    """A lease that ends at 117 makes the instance expire at 127, whenever it was checked before."""
    first = next_expiry_check([idle(in_flight=1)], 103.0)
    assert first == 113.0
    second = next_expiry_check([idle(in_flight=1)], first)
    assert second == 123.0
    released = idle(last=117.0)
    assert not is_expired(released, second)
    assert next_expiry_check([released], second) == 127.0
