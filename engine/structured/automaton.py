"""Regular expressions as deterministic finite automata: a character leads from a state to at most one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from engine.structured.regex import Alternation, Anchor, Chars, Concatenation, Node, Ranges, Repeat, merged

_NFA_STATES_PER_STATE = 16  # at most, while building


@dataclass(frozen=True, slots=True)
class State:
    is_accepting: bool
    transitions: tuple[tuple[Ranges, int], ...]  # disjoint characters → target state


def automaton(node: Node, *, max_states: int) -> tuple[State, ...] | None:
    """The states, the start state first; None if there would be more than `max_states`."""
    nfa = _Nfa(max_states * _NFA_STATES_PER_STATE)
    try:
        end = nfa.add()
        start = nfa.before(node, end)
    except _TooLarge:
        return None
    first = nfa.closure((start,))
    numbers, found, states = {first: 0}, [first], list[State]()
    for here in found:  # grows
        transitions: dict[frozenset[int], list[tuple[int, int]]] = {}
        for characters, targets in nfa.transitions_from(here):
            transitions.setdefault(nfa.closure(targets), []).append(characters)
        for there in transitions:
            if there not in numbers:
                numbers[there] = len(found)
                found.append(there)
        if len(found) > max_states:
            return None
        states.append(
            State(end in here, tuple((merged(c), numbers[there]) for there, c in transitions.items()))
        )
    return tuple(states)


def intersection(
    wanted: Sequence[Node], unwanted: Sequence[Node] = (), *, max_states: int
) -> tuple[State, ...] | None:
    """The automaton of the texts that all wanted and no unwanted expressions match; None if it is too large.

    An accepting state can be reached from every state; if there is no such text, the only state is not
    accepting.
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
    """Each state combines one state per machine; None for an unwanted machine that can't match any more."""
    first: tuple[int | None, ...] = (0,) * len(machines)
    numbers, found, states = {first: 0}, [first], list[State]()
    for here in found:  # grows
        at = [None if one is None else machine[one] for machine, one in zip(machines, here, strict=True)]
        transitions: dict[tuple[int | None, ...], list[tuple[int, int]]] = {}
        for span, there in _common_transitions(at):
            if None not in there[:num_wanted]:
                transitions.setdefault(there, []).append(span)
        for there in transitions:
            if there not in numbers:
                numbers[there] = len(found)
                found.append(there)
        if len(found) > max_states:
            return None
        is_accepting = all(state is not None and state.is_accepting for state in at[:num_wanted])
        is_accepting = is_accepting and not any(
            state is not None and state.is_accepting for state in at[num_wanted:]
        )
        states.append(
            State(is_accepting, tuple((merged(c), numbers[there]) for there, c in transitions.items()))
        )
    return _trim(states)


def _common_transitions(at: Sequence[State | None]) -> list[tuple[tuple[int, int], tuple[int | None, ...]]]:
    """Disjoint ranges of characters, each with the target state of every machine."""
    edges = [
        (start, end, index, to)
        for index, state in enumerate(at)
        if state is not None
        for ranges, to in state.transitions
        for start, end in ranges
    ]
    borders = sorted({border for start, end, _, _ in edges for border in (start, end + 1)})
    transitions = []
    for start, after in pairwise(borders):
        reached = {index: to for a, b, index, to in edges if a <= start <= b}
        if reached:
            transitions.append(((start, after - 1), tuple(reached.get(index) for index in range(len(at)))))
    return transitions


def _trim(states: Sequence[State]) -> tuple[State, ...]:
    """The states from which an accepting state can be reached."""
    before: dict[int, list[int]] = {}
    for index, state in enumerate(states):
        for _, to in state.transitions:
            before.setdefault(to, []).append(index)
    alive = {index for index, state in enumerate(states) if state.is_accepting}
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
            states[old].is_accepting,
            tuple((ranges, numbers[to]) for ranges, to in states[old].transitions if to in numbers),
        )
        for old in sorted(alive)
    )


class _TooLarge(Exception):
    pass


@dataclass(slots=True)
class _Nfa:
    """Thompson's construction: states with transitions that consume a character, and epsilon transitions."""

    max_states: int
    epsilon: list[list[int]] = field(default_factory=list)
    consuming: list[list[tuple[Ranges, int]]] = field(default_factory=list)

    def add(self, *epsilon: int) -> int:
        if len(self.epsilon) >= self.max_states:
            raise _TooLarge
        self.epsilon.append(list(epsilon))
        self.consuming.append([])
        return len(self.epsilon) - 1

    def before(self, node: Node, then: int) -> int:
        """The start state of the expression, which leads to the state `then`."""
        match node:
            case Chars(ranges):
                state = self.add()
                self.consuming[state].append((ranges, then))
                return state
            case Concatenation(parts):
                for part in reversed(parts):
                    then = self.before(part, then)
                return then
            case Alternation(branches):
                return self.add(*(self.before(branch, then) for branch in branches))
            case Repeat(part, least, most):
                if most is None:
                    after = self.add(then)
                    self.epsilon[after].append(self.before(part, after))
                else:
                    after = then
                    for _ in range(most - least):
                        after = self.add(then, self.before(part, after))
                for _ in range(least):
                    after = self.before(part, after)
                return after
            case Anchor():
                raise ValueError("an automaton can't contain anchors")

    def closure(self, states: Sequence[int]) -> frozenset[int]:
        """All states that epsilon transitions reach from these."""
        reached, todo = set(states), list(states)
        while todo:
            for state in self.epsilon[todo.pop()]:
                if state not in reached:
                    reached.add(state)
                    todo.append(state)
        return frozenset(reached)

    def transitions_from(self, states: frozenset[int]) -> list[tuple[tuple[int, int], tuple[int, ...]]]:
        """Disjoint ranges of characters, each with all its target states."""
        edges = [
            (start, end, to)
            for state in states
            for ranges, to in self.consuming[state]
            for start, end in ranges
        ]
        borders = sorted({border for start, end, _ in edges for border in (start, end + 1)})
        spans = [(start, end - 1) for start, end in pairwise(borders)]
        found = [(span, tuple(to for start, end, to in edges if start <= span[0] <= end)) for span in spans]
        return [(span, targets) for span, targets in found if targets]
