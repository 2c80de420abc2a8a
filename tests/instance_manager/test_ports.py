"""The port range, and the bind test against real sockets."""

from __future__ import annotations

import socket

import pytest

from instance_manager.errors import NoCapacity
from instance_manager.lifecycle.ports import PortRange, can_bind


def ports(count: int = 3, *, taken_by_others: frozenset[int] = frozenset()) -> PortRange:
    return PortRange("127.0.0.1", 9000, count, bind_test=lambda _, port: port not in taken_by_others)


def test_ports_come_in_sequence_and_come_back() -> None:
    some = ports()
    assert [some.take(), some.take(), some.take()] == [9000, 9001, 9002]
    some.release(9001)
    assert some.held == {9000, 9002}
    assert some.take() == 9001


def test_a_port_of_another_program_is_passed_over() -> None:
    some = ports(taken_by_others=frozenset({9000}))
    assert some.take() == 9001
    assert not some.is_bindable(9000)


def test_a_lost_port_is_avoided() -> None:
    assert ports().take(avoid=9000) == 9001


def test_exhaustion_says_by_whom() -> None:
    own = ports(1)
    own.take()
    with pytest.raises(NoCapacity, match=r"all 1 places .* VLLM_MAX_INSTANCES"):
        own.take()
    with pytest.raises(NoCapacity, match=r"no port in 9000-9001 is free: 0 .* 2 by other programs"):
        ports(2, taken_by_others=frozenset({9000, 9001})).take()


def test_releasing_twice_is_a_fault() -> None:
    some = ports()
    some.release(some.take())
    with pytest.raises(KeyError):
        some.release(9000)


def test_the_range_ends_with_the_last_port_there_is() -> None:
    some = PortRange("127.0.0.1", 65535, 5, bind_test=lambda *_: True)
    assert some.take() == 65535
    with pytest.raises(NoCapacity):
        some.take()


def test_the_bind_test_sees_a_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not can_bind("127.0.0.1", port)
    assert can_bind("127.0.0.1", port)
