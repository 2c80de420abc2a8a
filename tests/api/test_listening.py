"""Where Berth listens is settled first."""

from __future__ import annotations

import errno
import socket

import pytest

from api.listening import bind


def test_every_address_of_a_name_is_bound() -> None:
    bound = bind("localhost", 0)
    try:
        named = {info[4][0] for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
        assert {one.getsockname()[0] for one in bound} == named
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect(bound[0].getsockname()[:2])  # nobody is answered before Berth is ready
    finally:
        for one in bound:
            one.close()


def test_a_port_that_is_taken_is_said_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError) as error:
        bind("127.0.0.1", taken.getsockname()[1])
    assert error.value.errno == errno.EADDRINUSE
