"""A case: a name, what it needs of a server, and a function that asks and compares."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from conformance.client import Api

Ask = Callable[[Api], Awaitable[None]]
AskOne = Callable[[Api, Any], Awaitable[None]]
AskFunction = TypeVar("AskFunction", bound=Callable[..., Awaitable[None]])


class Need(StrEnum):
    """What a server must be able to do for a case to be asked of it."""

    GENERATE = "generates text"
    CHAT = "has a chat template"
    TOOLS = "calls tools"
    REASONING = "separates reasoning"
    RESPONSES = "has /v1/responses"
    MESSAGES = "has /v1/messages"
    EMBED = "embeds"
    SCORE = "scores"


@dataclass(frozen=True, slots=True)
class Case:
    name: str  # group/case[label]
    ask: Ask
    needs: frozenset[Need]
    alone: bool  # reads what other requests change, so nothing else may run beside it


class Group:
    """The cases of one subject; a decorated function is a case, or one per label."""

    def __init__(self, name: str, *needs: Need) -> None:
        self.name = name
        self.cases: list[Case] = []
        self._needs = frozenset(needs)

    def case(self, *needs: Need, alone: bool = False) -> Callable[[AskFunction], AskFunction]:
        def register(ask: AskFunction) -> AskFunction:
            self._add(ask.__name__, ask, needs, alone)
            return ask

        return register

    def each(
        self, values: Mapping[str, Any], *needs: Need, alone: bool = False
    ) -> Callable[[AskFunction], AskFunction]:
        """One case per label; the function gets the label's value."""

        def register(ask: AskFunction) -> AskFunction:
            for label, value in values.items():
                self._add(f"{ask.__name__}[{label}]", _bind(ask, value), needs, alone)
            return ask

        return register

    def _add(self, name: str, ask: Ask, needs: tuple[Need, ...], alone: bool) -> None:
        full = f"{self.name}/{name.replace('_', '-')}"
        self.cases.append(Case(full, ask, self._needs | frozenset(needs), alone))


def _bind(ask: AskOne, value: Any) -> Ask:
    async def bound(api: Api) -> None:
        await ask(api, value)

    return bound
