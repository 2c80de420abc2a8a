"""Berth's listening sockets are bound before anything else."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from api.server.listening import bind
from tests.berth_process import running_berth


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


with_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")


@contextlib.contextmanager
def bound_to(host: str, port: int = 0) -> Iterator[list[socket.socket]]:
    bound = bind(host, port)
    try:
        yield bound
    finally:
        for one in bound:
            one.close()


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """A resolver that returns these addresses for every name."""

    def getaddrinfo(_host: str, _port: None, **_: Any) -> list[tuple[Any, ...]]:
        families = {False: socket.AF_INET, True: socket.AF_INET6}
        tails: dict[bool, tuple[int, ...]] = {False: (), True: (0, 0)}
        is_new = [(one, ":" in one) for one in addresses]
        return [(families[new], socket.SOCK_STREAM, 6, "", (one, 0, *tails[new])) for one, new in is_new]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_every_address_of_a_name_is_bound() -> None:
    with bound_to("localhost") as bound:
        named = {info[4][0] for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
        assert {one.getsockname()[0] for one in bound} == named
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect(bound[0].getsockname()[:2])  # refused before Berth is ready


def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError) as error:
        bind("127.0.0.1", taken.getsockname()[1])
    assert error.value.errno == errno.EADDRINUSE


@with_ipv6
@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_all_addresses_means_both_families_on_one_port(host: str) -> None:
    with bound_to(host) as bound:
        assert {one.getsockname()[0] for one in bound} == {"0.0.0.0", "::"}
        assert len({one.getsockname()[1] for one in bound}) == 1


@with_ipv6
def test_a_name_with_two_addresses_has_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "::1", "127.0.0.1")
    with bound_to("localhost") as bound:
        assert {one.getsockname()[0] for one in bound} == {"127.0.0.1", "::1"}
        assert len({one.getsockname()[1] for one in bound}) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=with_ipv6)])
def test_a_single_address_binds_only_that_one(host: str) -> None:
    with bound_to(host) as bound:
        assert [one.getsockname()[0] for one in bound] == [host]


@with_ipv6
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_in_use_in_one_family_is_in_use(family: socket.AddressFamily) -> None:
    """Otherwise half of the clients of `localhost` would reach another program."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as taken, pytest.raises(OSError) as error:
        bind("0.0.0.0", taken.getsockname()[1])
    assert error.value.errno == errno.EADDRINUSE


def without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., socket.socket] = socket.socket

    def no_ipv6(family: socket.AddressFamily, *rest: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return original(family, *rest)

    monkeypatch.setattr(socket, "socket", no_ipv6)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "localhost"])
def test_a_machine_without_ipv6_listens_on_ipv4(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    without_ipv6(monkeypatch)
    if host == "localhost":
        resolving(monkeypatch, "::1", "127.0.0.1")
    with bound_to(host) as bound:
        assert len(bound) == 1


def test_an_address_this_machine_lacks_does_not_prevent_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers whose /etc/hosts has ::1 but whose network has not."""
    resolving(monkeypatch, "2001:db8::1", "127.0.0.1")
    with bound_to("localhost") as bound:
        assert [one.getsockname()[0] for one in bound] == ["127.0.0.1"]


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_of_another_machine_is_reported(host: str) -> None:
    with pytest.raises(OSError) as error:
        bind(host, 0)
    assert error.value.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def other_ipv6_address() -> str | None:
    """An address of this machine other than loopback."""
    found = [one for nic in psutil.net_if_addrs().values() for one in nic if one.family == socket.AF_INET6]
    return next((one.address for one in found if not one.address.startswith(("fe80", "::1"))), None)


@with_ipv6
def test_berth_is_reachable_by_both_families_from_this_machine_only(tmp_path: Path) -> None:
    """By default; without keys, requests from other addresses than loopback are refused."""
    with running_berth(tmp_path, APP_HOST="0.0.0.0") as berth:

        def status(host: str, path: str = "/instances", **headers: str) -> int:
            url = f"http://{host}:{berth.port}{path}"
            with httpx.Client(trust_env=False, timeout=30) as client:
                return client.get(url, headers=headers).status_code

        assert status("127.0.0.1") == status("[::1]") == 200
        assert status("[::1]", Host="localhost") == 200
        assert status("[::1]", Host="rebound.example") == 403
        assert status("[::1]", Origin="https://example.com") == 403
        assert status("[::1]", **{"X-Forwarded-For": "::1"}) == 403
        if (other := other_ipv6_address()) is not None:
            assert status(f"[{other}]", "/health") == 200
            assert status(f"[{other}]") == 403
            assert status(f"[{other}]", Host="localhost") == 403
