"""What an attack is, and how one is added.

A function that takes the `Ground` is an attack: what it does within `ground.measured()` is watched, what it
asserts must hold, and its name says what it is. Bodies to be sent by two ways and refused are rows of a table
(`rows/bodies.py`). Both are listed in a `Field`, with the settings that they need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.attack.environment import Ground


@dataclass(frozen=True, slots=True)
class Attack:
    """`who`, as in docs/threats.md: key, nobody, a web page, engine, slip."""

    name: str
    who: str
    act: Callable[[Ground], None]


@dataclass(frozen=True, slots=True)
class Field:
    """Attacks on one Berth with these settings, one after the other."""

    name: str
    attacks: Sequence[Attack]
    settings: Mapping[str, str] = field(default_factory=dict)
    has_keys: bool = True


def attack(who: str, act: Callable[[Ground], None]) -> Attack:
    """Named as its function is."""
    return Attack(act.__name__.lstrip("_").replace("_", " "), who, act)
