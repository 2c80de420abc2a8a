"""Turns at the compiler: few at a time, round-robin over tenants."""

from __future__ import annotations

import asyncio

import pytest

from engine.structured.compile_turns import NO_TENANT, CompilerBusy, CompileTurns, Turn


def turns_of(*, num_turns: int = 4, max_waiting: int = 8) -> CompileTurns:
    return CompileTurns(num_turns=num_turns, max_waiting=max_waiting)


async def begun(turns: CompileTurns, *tenants: str) -> list[Turn]:
    return [await turns.begin(tenant) for tenant in tenants]


async def waiting(turns: CompileTurns, *tenants: str) -> list[asyncio.Task[Turn]]:
    """Start these requests now, in this order."""
    tasks = [asyncio.create_task(turns.begin(tenant)) for tenant in tenants]
    await asyncio.sleep(0)
    return tasks


async def leave(tasks: list[asyncio.Task[Turn]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_tenant_never_has_more_than_half_of_the_turns() -> None:
    turns = turns_of()
    own = await begun(turns, "a", "a")
    third, other = await waiting(turns, "a", "b")
    assert (await other).tenant == "b" and not third.done()
    turns.end(own[0])
    assert (await third).tenant == "a"


async def test_without_keys_every_request_may_have_a_turn() -> None:
    assert len(await begun(turns_of(), *[NO_TENANT] * 4)) == 4


async def test_the_tenant_with_fewest_turns_is_next() -> None:
    turns = turns_of()
    running = await begun(turns, "a", "a", "b", "c")
    tasks = await waiting(turns, "a", "b", "d", "a")
    turns.end(running[0])
    assert (await asyncio.wait_for(tasks[2], 1)).tenant == "d"
    await leave(tasks)


async def test_a_request_after_a_flood_does_not_wait_for_it() -> None:
    turns = turns_of(num_turns=1)
    first = await turns.begin(NO_TENANT)
    *flood, last = await waiting(turns, *[NO_TENANT] * 6)
    turns.end(first)
    await asyncio.wait_for(last, 1)
    assert not any(task.done() for task in flood)
    await leave(flood)


async def test_of_too_many_that_wait_the_oldest_of_the_busiest_tenant_is_refused() -> None:
    turns = turns_of(num_turns=1, max_waiting=4)
    await turns.begin("x")
    tasks = await waiting(turns, "b", "a", "a", "a", "c")
    with pytest.raises(CompilerBusy):
        await tasks[1]
    assert [task.done() for task in tasks] == [False, True, False, False, False]
    await leave(tasks)
    tasks = await waiting(turns, *"abcd")  # a cancelled one makes way for others
    assert not any(task.done() for task in tasks)
    await leave(tasks)


async def test_a_request_cancelled_as_its_turn_comes_gives_it_back() -> None:
    turns = turns_of(num_turns=1)
    first = await turns.begin("a")
    staying, leaving = await waiting(turns, "b", "c")
    turns.end(first)
    leaving.cancel()
    assert (await asyncio.wait_for(staying, 1)).tenant == "b"
