"""A case: a name, the abilities it needs, and a function that sends requests and checks the responses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from conformance.client import Api

Run = Callable[[Api], Awaitable[None]]
RunWithValue = Callable[[Api, Any], Awaitable[None]]
RunFunction = TypeVar("RunFunction", bound=Callable[..., Awaitable[None]])


class Need(StrEnum):
    """An ability that a server must have for a case to apply."""

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
    run: Run
    needs: frozenset[Need]
    alone: bool  # depends on global state such as metrics, so no other case may run at the same time


class Group:
    """The cases of one subject; a decorated function is one case, or one per label."""

    def __init__(self, name: str, *needs: Need) -> None:
        self.name = name
        self.cases: list[Case] = []
        self._needs = frozenset(needs)

    def case(self, *needs: Need, alone: bool = False) -> Callable[[RunFunction], RunFunction]:
        def register(run: RunFunction) -> RunFunction:
            self._add(run.__name__, run, needs, alone)
            return run

        return register

    def each(
        self, values: Mapping[str, Any], *needs: Need, alone: bool = False
    ) -> Callable[[RunFunction], RunFunction]:
        """One case per label; the function receives the label's value."""

        def register(run: RunFunction) -> RunFunction:
            for label, value in values.items():
                self._add(f"{run.__name__}[{label}]", _bind(run, value), needs, alone)
            return run

        return register

    def _add(self, name: str, run: Run, needs: tuple[Need, ...], alone: bool) -> None:
        full = f"{self.name}/{name.replace('_', '-')}"
        self.cases.append(Case(full, run, self._needs | frozenset(needs), alone))


def _bind(run: RunWithValue, value: Any) -> Run:
    async def bound(api: Api) -> None:
        await run(api, value)

    return bound
