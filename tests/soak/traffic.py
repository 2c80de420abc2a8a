"""Clients that ask for models in turn, and what became of each of their requests."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import httpx

from tests.soak.client import ANSWER_TIMEOUT_S, Answer, NotAnswered, Outcome, send
from tests.soak.requests import LONG_PROMPT_WORDS, Ask, draw, random_prompt

_RETRY_PAUSE_S = (0.1, 1.0)
_NOT_TRIED_AGAIN = {400, 401, 403, 404, 422}
_MOOD_S = 7.0  # how long all ask for the same few models
_MOODS_AT_LEAST = 5


@dataclass(slots=True)
class Traffic:
    """Clients over one base URL, until the time is out; each finishes the request that it is at."""

    base_url: str
    models: Sequence[str]
    num_clients: int
    seed: int = 0
    answers: list[Answer] = field(default_factory=list)
    keys: Sequence[str] = ()  # an API key for each client
    guest: str = ""  # a model that is asked for now and then, and may not be there
    num_retries: int = 0
    timeout_s: float = ANSWER_TIMEOUT_S

    async def run(self, seconds: float) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.num_clients)
        timeout = httpx.Timeout(self.timeout_s)
        began = time.monotonic()
        until = began + seconds
        moods = self._moods(began, min(_MOOD_S, seconds / _MOODS_AT_LEAST))
        async with (
            httpx.AsyncClient(
                base_url=self.base_url, limits=limits, timeout=timeout, trust_env=False
            ) as http,
            asyncio.TaskGroup() as clients,
        ):
            for number in range(self.num_clients):
                clients.create_task(self._client(http, number, moods, until))

    async def fill(self, num_prompts: int) -> None:
        """Ask each model for one token after each of so many long prompts. Raises NotAnswered."""
        dice = random.Random(self.seed)
        async with httpx.AsyncClient(
            base_url=self.base_url, timeout=ANSWER_TIMEOUT_S, trust_env=False
        ) as http:
            for model in self.models:
                for _ in range(num_prompts):
                    prompt = random_prompt(dice, LONG_PROMPT_WORDS)
                    answer = await send(http, Ask(model, False, False, 1, prompt))
                    if answer.outcome is not Outcome.ANSWERED:
                        raise NotAnswered(answer.problem)

    async def _client(
        self, http: httpx.AsyncClient, number: int, moods: Callable[[], list[str]], until: float
    ) -> None:
        """Bursts: some requests one after the other, then a pause."""
        dice = random.Random(self.seed + number)
        while time.monotonic() < until:
            for _ in range(dice.randint(1, 6)):
                if time.monotonic() >= until:
                    return
                ask = draw(dice, [self.guest] if self.guest and dice.random() < 0.05 else moods())
                if self.keys and number % 2:  # what half of them have used is known to the token
                    ask = replace(ask, leaves_after=None, patience_s=None)
                await self._ask(http, number, ask, dice, until)
            await asyncio.sleep(dice.expovariate(3.0))

    async def _ask(
        self, http: httpx.AsyncClient, number: int, ask: Ask, dice: random.Random, until: float
    ) -> None:
        """As clients do: what has failed is tried again, some times. Each attempt stands for itself."""
        key = self.keys[number] if self.keys else ""
        for attempt in range(1 + self.num_retries):
            answer = await send(http, ask, key, self.timeout_s)
            self.answers.append(replace(answer, client=number, is_retry=attempt > 0))
            is_final = answer.outcome is not Outcome.FAILED or answer.status in _NOT_TRIED_AGAIN
            if is_final or time.monotonic() >= until:
                return
            await asyncio.sleep(dice.uniform(*_RETRY_PAUSE_S))

    def _moods(self, began: float, mood_s: float) -> Callable[[], list[str]]:
        """What is asked for now: all models, then one, then two: so the others may fall asleep."""

        def favourites() -> list[str]:
            mood = int((time.monotonic() - began) / mood_s)
            dice = random.Random(self.seed + mood)
            return list(self.models) if mood % 3 == 0 else dice.sample(list(self.models), mood % 3)

        return favourites
