"""Attacks, and how to add one.

An attack is a function that takes the `AttackEnvironment`: the code within `env.measured()` is measured, its
assertions must hold, and its name becomes the attack's. Bodies that must be refused on two routes are rows of
a table (`rows/bodies.py`). Both are listed in an `AttackGroup`, with the settings that they need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.attack.environment import AttackEnvironment


@dataclass(frozen=True, slots=True)
class Attack:
    """`who` is the attacker, as in docs/threats.md: key, nobody, a web page, engine, slip."""

    name: str
    who: str
    act: Callable[[AttackEnvironment], None]


@dataclass(frozen=True, slots=True)
class AttackGroup:
    """Attacks run one after the other on one Berth with these settings."""

    name: str
    attacks: Sequence[Attack]
    settings: Mapping[str, str] = field(default_factory=dict)
    has_keys: bool = True


def attack(who: str, act: Callable[[AttackEnvironment], None]) -> Attack:
    """An attack named after its function."""
    return Attack(act.__name__.lstrip("_").replace("_", " "), who, act)
