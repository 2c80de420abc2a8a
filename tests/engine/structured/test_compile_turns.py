"""Turns at the compiler: few at a time, round the tenants, and who takes long makes room."""

from __future__ import annotations

import asyncio

import pytest

from engine.structured.compile_turns import NOBODY, CompilerBusy, CompileTurns, Turn


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def turns_of(clock: Clock, *, num_turns: int = 4, max_waiting: int = 8, fair_s: float = 1.0) -> CompileTurns:
    return CompileTurns(num_turns=num_turns, max_waiting=max_waiting, fair_s=fair_s, clock=clock)


async def begun(turns: CompileTurns, *tenants: str) -> list[Turn]:
    return [await turns.begin(tenant) for tenant in tenants]


async def waiting(turns: CompileTurns, *tenants: str) -> list[asyncio.Task[Turn]]:
    """Those that ask now, in this order."""
    tasks = [asyncio.create_task(turns.begin(tenant)) for tenant in tenants]
    await asyncio.sleep(0)
    return tasks


async def test_one_tenant_never_has_more_than_half_of_the_turns() -> None:
    turns = turns_of(Clock())
    own = await begun(turns, "a", "a")
    third, other = await waiting(turns, "a", "b")
    assert (await other).tenant == "b" and not third.done()
    turns.end(own[0])
    assert (await third).tenant == "a"


async def test_without_keys_every_request_may_have_a_turn() -> None:
    turns = turns_of(Clock())
    assert len(await begun(turns, *[NOBODY] * 4)) == 4


async def test_turns_go_round_the_tenants_that_wait() -> None:
    turns = turns_of(Clock(), num_turns=2)
    running = await begun(turns, "x", "y")
    a1, a2, b1, c1 = await waiting(turns, "a", "a", "b", "c")
    order = []
    for name, task in (("a1", a1), ("b1", b1), ("c1", c1), ("a2", a2)):
        turns.end(running.pop(0))
        running.append(await asyncio.wait_for(task, 1))
        order.append(name)
    assert order == ["a1", "b1", "c1", "a2"]


async def test_who_has_had_its_time_ends_when_others_wait_and_not_before() -> None:
    clock = Clock()
    turns = turns_of(clock, num_turns=2)
    first = await turns.begin("a")
    clock.now += 0.5
    second = await turns.begin("b")
    clock.now += 5
    assert not first.is_over.is_set()  # nobody waits
    [third] = await waiting(turns, "c")
    assert first.is_over.is_set() and not second.is_over.is_set()
    turns.end(first)
    assert (await third).tenant == "c"


async def test_who_waits_hears_as_soon_as_the_longest_has_had_its_time() -> None:
    turns = CompileTurns(num_turns=1, max_waiting=8, fair_s=0.05)
    first = await turns.begin("a")
    [second] = await waiting(turns, "b")
    await asyncio.wait_for(first.is_over.wait(), 5)
    turns.end(first)
    assert (await second).tenant == "b"


async def test_the_tenant_with_most_turns_makes_room_first() -> None:
    clock = Clock()
    turns = turns_of(clock)
    [old] = await begun(turns, "b")
    clock.now += 1
    many = await begun(turns, "a", "a", "c")
    clock.now += 2
    await waiting(turns, "d")
    assert [turn.is_over.is_set() for turn in (old, *many)] == [False, True, False, False]


async def test_too_many_are_refused_and_a_tenant_has_half_of_the_places() -> None:
    turns = turns_of(Clock(), num_turns=1)
    await turns.begin("x")
    tasks = await waiting(turns, *["a"] * 4)
    with pytest.raises(CompilerBusy):
        await turns.begin("a")
    tasks += await waiting(turns, *["b"] * 4)
    with pytest.raises(CompilerBusy):
        await turns.begin("c")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    [left] = await waiting(turns, "c")  # who leaves gives its place to others
    left.cancel()


async def test_who_leaves_just_as_its_turn_comes_gives_it_back() -> None:
    turns = turns_of(Clock(), num_turns=1)
    first = await turns.begin("a")
    leaving, staying = await waiting(turns, "b", "c")
    turns.end(first)
    leaving.cancel()
    assert (await asyncio.wait_for(staying, 1)).tenant == "c"
