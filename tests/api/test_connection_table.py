"""Which connection is evicted when the limit is reached, in constant time per new connection."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from api.server.connection_table import ConnectionTable
from api.server.limits import ConnectionLimits
from tests.api.test_limits import GET, TIMEOUT_S, serving


@dataclass(eq=False)
class TrackedConnection:
    """Counts how often it is examined."""

    answered_at: float
    examined: list[None] = field(default_factory=list)
    is_asking: bool = False
    is_read_paused: bool = False
    is_listed_idle: bool = False

    @property
    def is_idle(self) -> bool:
        self.examined.append(None)
        return not self.is_asking

    def evict(self) -> None:
        raise AssertionError("the table only names the connection")


def test_the_longest_idle_is_evicted_first() -> None:
    table = ConnectionTable()
    connections = [TrackedConnection(float(number)) for number in range(4)]
    for connection in connections:
        table.mark_idle(connection)
    table.mark_busy(connections[0])
    connections[1].answered_at = 9.0  # a request that was not recorded
    connections[2].is_asking = True  # a request in progress
    assert table.pop_longest_idle() is connections[3]
    assert table.pop_longest_idle() is connections[1]
    assert table.pop_longest_idle() is None
    connections[2].is_asking = False
    assert table.pop_longest_idle() is connections[2]


def test_eviction_is_constant_time_per_connection() -> None:
    table, examined = ConnectionTable(), list[None]()
    for number in range(5_000):
        table.mark_idle(TrackedConnection(float(number), examined))
    streaming = [TrackedConnection(0.0, examined) for _ in range(5_000)]
    for connection in streaming:
        table.mark_idle(connection)
        table.mark_busy(connection)
    for number in range(5_000):
        taken = table.pop_longest_idle()
        assert isinstance(taken, TrackedConnection) and taken.answered_at == number
        table.mark_idle(TrackedConnection(10_000.0, examined))
    assert len(examined) == 5_000


def test_only_connections_stalled_long_enough_are_evicted() -> None:
    table = ConnectionTable()
    still, moving, read_paused = (
        TrackedConnection(0.0),
        TrackedConnection(0.0),
        TrackedConnection(0.0, is_read_paused=True),
    )
    for connection in (read_paused, moving, still):
        table.mark_stalled(connection, 0.0)
    assert table.pop_longest_stalled(4.0) is None
    table.mark_stalled(moving, 4.0)
    assert table.pop_longest_stalled(6.0) is still
    assert table.pop_longest_stalled(6.0) is None, "the others make progress"
    table.mark_moving(moving)
    assert table.pop_longest_stalled(60.0) is None
    table.remove(read_paused)


async def test_five_hundred_idle_connections_do_not_delay_the_next() -> None:
    async with serving(ConnectionLimits(max_connections=250)) as served:
        idle = [await served.connect() for _ in range(500)]
        async with asyncio.timeout(TIMEOUT_S):
            last = await served.connect()
            assert await last.ask(GET + b"\r\n") == (200, b"0")
        assert len(served.server.server_state.connections) <= 251
        for client in (*idle, last):
            client.close()


async def test_a_client_that_reads_nothing_is_evicted() -> None:
    """A graceful close would wait for unsent data that the client never reads."""
    async with serving(ConnectionLimits(max_connections=2)) as served:
        clients = [await served.connect() for _ in range(2)]
        for client in clients:
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]
            client.write(GET.replace(b"/", b"/large", 1) + b"\r\n")
        async with asyncio.timeout(TIMEOUT_S):
            for _ in clients:
                await served.app.arrived.get()
        for _ in range(3):
            last = await served.connect()
            assert await last.ask(GET + b"\r\n") == (200, b"0")
            last.close()
        for client in clients:
            client.close()
