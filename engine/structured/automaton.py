"""An expression as a finite automaton: every character leads from one state to at most one other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from engine.structured.regex import Chars, Choice, Edge, Node, Ranges, Repeat, Run, merged

_PARTS_PER_STATE = 16  # of what is built on the way, at most


@dataclass(frozen=True, slots=True)
class State:
    is_end: bool
    ways: tuple[tuple[Ranges, int], ...]  # characters, each in one of them only → the state they lead to


def automaton(node: Node, *, max_states: int) -> tuple[State, ...] | None:
    """The states, the first one at the start; None if there would be more of them than `max_states`."""
    parts = _Parts(max_states * _PARTS_PER_STATE)
    try:
        end = parts.add()
        start = parts.before(node, end)
    except _TooLarge:
        return None
    first = parts.closure((start,))
    numbers, found, states = {first: 0}, [first], list[State]()
    for here in found:  # grows
        ways: dict[frozenset[int], list[tuple[int, int]]] = {}
        for characters, targets in parts.ways_from(here):
            ways.setdefault(parts.closure(targets), []).append(characters)
        for there in ways:
            if there not in numbers:
                numbers[there] = len(found)
                found.append(there)
        if len(found) > max_states:
            return None
        states.append(State(end in here, tuple((merged(c), numbers[there]) for there, c in ways.items())))
    return tuple(states)


def combined(
    wanted: Sequence[Node], unwanted: Sequence[Node] = (), *, max_states: int
) -> tuple[State, ...] | None:
    """Of the texts that all the wanted expressions match and no unwanted one; None if it is too large.

    A text that none of the states leads to is left out, so that no state is without an end; if there is no
    text at all, the only state is none either.
    """
    machines: list[tuple[State, ...]] = []
    for node in (*wanted, *unwanted):
        states = automaton(node, max_states=max_states)
        if states is None:
            return None
        machines.append(states)
    if len(machines) == 1 and not unwanted:
        return machines[0]
    return _product(machines, len(wanted), max_states)


def _product(
    machines: Sequence[tuple[State, ...]], num_wanted: int, max_states: int
) -> tuple[State, ...] | None:
    """Each state is one of every machine; None for an unwanted one that goes on no more."""
    first: tuple[int | None, ...] = (0,) * len(machines)
    numbers, found, states = {first: 0}, [first], list[State]()
    for here in found:  # grows
        at = [None if one is None else machine[one] for machine, one in zip(machines, here, strict=True)]
        ways: dict[tuple[int | None, ...], list[tuple[int, int]]] = {}
        for span, there in _common_ways(at):
            if None not in there[:num_wanted]:
                ways.setdefault(there, []).append(span)
        for there in ways:
            if there not in numbers:
                numbers[there] = len(found)
                found.append(there)
        if len(found) > max_states:
            return None
        is_end = all(one is not None and one.is_end for one in at[:num_wanted])
        is_end = is_end and not any(one is not None and one.is_end for one in at[num_wanted:])
        states.append(State(is_end, tuple((merged(c), numbers[there]) for there, c in ways.items())))
    return _with_ends(states)


def _common_ways(at: Sequence[State | None]) -> list[tuple[tuple[int, int], tuple[int | None, ...]]]:
    """Ranges of characters that don't overlap, each with the state that every machine comes to."""
    edges = [
        (start, end, index, to)
        for index, state in enumerate(at)
        if state is not None
        for ranges, to in state.ways
        for start, end in ranges
    ]
    borders = sorted({border for start, end, _, _ in edges for border in (start, end + 1)})
    ways = []
    for start, after in pairwise(borders):
        reached = {index: to for a, b, index, to in edges if a <= start <= b}
        if reached:
            ways.append(((start, after - 1), tuple(reached.get(index) for index in range(len(at)))))
    return ways


def _with_ends(states: Sequence[State]) -> tuple[State, ...]:
    """Those from which an end can be reached."""
    before: dict[int, list[int]] = {}
    for index, state in enumerate(states):
        for _, to in state.ways:
            before.setdefault(to, []).append(index)
    alive = {index for index, state in enumerate(states) if state.is_end}
    todo = list(alive)
    while todo:
        for index in before.get(todo.pop(), ()):
            if index not in alive:
                alive.add(index)
                todo.append(index)
    if 0 not in alive:
        return (State(False, ()),)
    numbers = {old: new for new, old in enumerate(sorted(alive))}
    return tuple(
        State(
            states[old].is_end,
            tuple((ranges, numbers[to]) for ranges, to in states[old].ways if to in numbers),
        )
        for old in sorted(alive)
    )


class _TooLarge(Exception):
    pass


@dataclass(slots=True)
class _Parts:
    """Thompson's construction: places with ways that take a character, and ways that take none."""

    max_parts: int
    free: list[list[int]] = field(default_factory=list)
    taking: list[list[tuple[Ranges, int]]] = field(default_factory=list)

    def add(self, *free: int) -> int:
        if len(self.free) >= self.max_parts:
            raise _TooLarge
        self.free.append(list(free))
        self.taking.append([])
        return len(self.free) - 1

    def before(self, node: Node, then: int) -> int:
        """Where the expression begins that leads on to the place `then`."""
        match node:
            case Chars(ranges):
                place = self.add()
                self.taking[place].append((ranges, then))
                return place
            case Run(parts):
                for part in reversed(parts):
                    then = self.before(part, then)
                return then
            case Choice(branches):
                return self.add(*(self.before(branch, then) for branch in branches))
            case Repeat(part, least, most):
                if most is None:
                    after = self.add(then)
                    self.free[after].append(self.before(part, after))
                else:
                    after = then
                    for _ in range(most - least):
                        after = self.add(then, self.before(part, after))
                for _ in range(least):
                    after = self.before(part, after)
                return after
            case Edge():
                raise ValueError("edges have no place in an automaton")

    def closure(self, places: Sequence[int]) -> frozenset[int]:
        """All that can be reached from these without a character."""
        reached, todo = set(places), list(places)
        while todo:
            for place in self.free[todo.pop()]:
                if place not in reached:
                    reached.add(place)
                    todo.append(place)
        return frozenset(reached)

    def ways_from(self, places: frozenset[int]) -> list[tuple[tuple[int, int], tuple[int, ...]]]:
        """Ranges of characters that don't overlap, each with all the places it leads to."""
        edges = [
            (start, end, to) for place in places for ranges, to in self.taking[place] for start, end in ranges
        ]
        borders = sorted({border for start, end, _ in edges for border in (start, end + 1)})
        spans = [(start, end - 1) for start, end in pairwise(borders)]
        found = [(span, tuple(to for start, end, to in edges if start <= span[0] <= end)) for span in spans]
        return [(span, targets) for span, targets in found if targets]
