"""The port range, and the bind test with real sockets."""

from __future__ import annotations

import socket

import pytest

from instance_manager.errors import NoCapacity
from instance_manager.lifecycle.ports import PortRange, can_bind


def port_range(count: int = 3, *, taken_by_others: frozenset[int] = frozenset()) -> PortRange:
    return PortRange("127.0.0.1", 9000, count, bind_test=lambda _, port: port not in taken_by_others)


def test_ports_are_taken_in_sequence_and_reused() -> None:
    ports = port_range()
    assert [ports.take(), ports.take(), ports.take()] == [9000, 9001, 9002]
    ports.release(9001)
    assert ports.held == {9000, 9002}
    assert ports.take() == 9001


def test_a_port_of_another_program_is_skipped() -> None:
    ports = port_range(taken_by_others=frozenset({9000}))
    assert ports.take() == 9001
    assert not ports.is_bindable(9000)


def test_a_lost_port_is_avoided() -> None:
    assert port_range().take(avoid=9000) == 9001


def test_the_refusal_names_the_holders_of_the_ports() -> None:
    own = port_range(1)
    own.take()
    with pytest.raises(NoCapacity, match=r"all 1 instance slots .* VLLM_MAX_INSTANCES"):
        own.take()
    with pytest.raises(NoCapacity, match=r"no port in 9000-9001 is free: 0 .* 2 by other programs"):
        port_range(2, taken_by_others=frozenset({9000, 9001})).take()


def test_releasing_a_port_twice_is_an_error() -> None:
    ports = port_range()
    ports.release(ports.take())
    with pytest.raises(KeyError):
        ports.release(9000)


def test_the_range_ends_at_the_highest_port_number() -> None:
    ports = PortRange("127.0.0.1", 65535, 5, bind_test=lambda *_: True)
    assert ports.take() == 65535
    with pytest.raises(NoCapacity):
        ports.take()


def test_the_bind_test_sees_a_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not can_bind("127.0.0.1", port)
    assert can_bind("127.0.0.1", port)
