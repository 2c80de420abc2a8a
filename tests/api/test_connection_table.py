"""Who gives way where all places are taken, and that nobody is looked for among all of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from api.server.connection_limits import ConnectionLimits
from api.server.connection_table import ConnectionTable
from tests.api.test_limits import GET, PATIENT, serving


@dataclass(eq=False)
class TrackedConnection:
    """Counts how often it is looked at."""

    answered_at: float
    looks: list[None] = field(default_factory=list)
    is_asking: bool = False
    is_held_up: bool = False

    @property
    def is_idle(self) -> bool:
        self.looks.append(None)
        return not self.is_asking


def test_the_idlest_goes_first() -> None:
    crowd = ConnectionTable()
    guests = [TrackedConnection(float(number)) for number in range(4)]
    for guest in guests:
        crowd.idle(guest)
    crowd.busy(guests[0])
    guests[1].answered_at = 9.0  # a request that went by unnoticed
    guests[2].is_asking = True  # one that is under way
    assert crowd.take_idlest() is guests[3]
    assert crowd.take_idlest() is guests[1]
    assert crowd.take_idlest() is None
    guests[2].is_asking = False
    assert crowd.take_idlest() is guests[2]


def test_five_thousand_cost_no_more_than_five() -> None:
    crowd, looks = ConnectionTable(), list[None]()
    for number in range(5_000):
        crowd.idle(TrackedConnection(float(number), looks))
    streaming = [TrackedConnection(0.0, looks) for _ in range(5_000)]
    for guest in streaming:
        crowd.idle(guest)
        crowd.busy(guest)
    for number in range(5_000):
        taken = crowd.take_idlest()
        assert isinstance(taken, TrackedConnection) and taken.answered_at == number
        crowd.idle(TrackedConnection(10_000.0, looks))
    assert len(looks) == 5_000


def test_who_stands_still_gives_way_after_a_while_and_who_moves_does_not() -> None:
    crowd = ConnectionTable()
    still, moving, held_up = (
        TrackedConnection(0.0),
        TrackedConnection(0.0),
        TrackedConnection(0.0, is_held_up=True),
    )
    for guest in (held_up, moving, still):
        crowd.still(guest, 0.0)
    assert crowd.take_stillest(4.0) is None
    crowd.still(moving, 4.0)
    assert crowd.take_stillest(6.0) is still
    assert crowd.take_stillest(6.0) is None, "the others do what they can"
    crowd.moves(moving)
    assert crowd.take_stillest(60.0) is None
    crowd.gone(held_up)


async def test_five_hundred_idle_ones_make_the_next_wait_no_longer() -> None:
    async with serving(ConnectionLimits(max_connections=250)) as served:
        idle = [await served.connect() for _ in range(500)]
        async with asyncio.timeout(PATIENT):
            last = await served.connect()
            assert await last.ask(GET + b"\r\n") == (200, b"0")
        assert len(served.server.server_state.connections) <= 251
        for client in (*idle, last):
            client.close()


async def test_who_reads_nothing_of_the_answer_keeps_no_place() -> None:
    """Closing waits for what is unsent: there is nothing that it could wait for."""
    async with serving(ConnectionLimits(max_connections=2)) as served:
        clients = [await served.connect() for _ in range(2)]
        for client in clients:
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]
            client.write(GET.replace(b"/", b"/large", 1) + b"\r\n")
        async with asyncio.timeout(PATIENT):
            for _ in clients:
                await served.app.arrived.get()
        for _ in range(3):
            last = await served.connect()
            assert await last.ask(GET + b"\r\n") == (200, b"0")
            last.close()
        for client in clients:
            client.close()
