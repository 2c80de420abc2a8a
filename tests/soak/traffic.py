"""Clients that send requests to changing models, and the outcome of each attempt."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import httpx

from tests.soak.client import REQUEST_TIMEOUT_S, Attempt, InvalidResponse, Outcome, send
from tests.soak.requests import LONG_PROMPT_WORDS, Request, random_prompt, random_request

_RETRY_PAUSE_S = (0.1, 1.0)
_NOT_RETRIED = {400, 401, 403, 404, 422}
_PHASE_S = 7.0  # how long all clients use the same few models
_MIN_PHASES = 5


@dataclass(slots=True)
class Traffic:
    """Clients of one base URL. When the time is up, each finishes its current request."""

    base_url: str
    models: Sequence[str]
    num_clients: int
    seed: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    keys: Sequence[str] = ()  # one API key per client
    guest: str = ""  # a model that is sometimes requested and may not exist
    num_retries: int = 0
    timeout_s: float = REQUEST_TIMEOUT_S

    async def run(self, seconds: float) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.num_clients)
        timeout = httpx.Timeout(self.timeout_s)
        began = time.monotonic()
        until = began + seconds
        choose_models = self._model_phases(began, min(_PHASE_S, seconds / _MIN_PHASES))
        async with (
            httpx.AsyncClient(
                base_url=self.base_url, limits=limits, timeout=timeout, trust_env=False
            ) as http,
            asyncio.TaskGroup() as clients,
        ):
            for number in range(self.num_clients):
                clients.create_task(self._client(http, number, choose_models, until))

    async def fill(self, num_prompts: int) -> None:
        """Request one token from each model per long prompt, to fill its cache. Raises InvalidResponse."""
        rng = random.Random(self.seed)
        async with httpx.AsyncClient(
            base_url=self.base_url, timeout=REQUEST_TIMEOUT_S, trust_env=False
        ) as http:
            for model in self.models:
                for _ in range(num_prompts):
                    prompt = random_prompt(rng, LONG_PROMPT_WORDS)
                    answer = await send(http, Request(model, False, False, 1, prompt))
                    if answer.outcome is not Outcome.ANSWERED:
                        raise InvalidResponse(answer.problem)

    async def _client(
        self, http: httpx.AsyncClient, number: int, choose_models: Callable[[], list[str]], until: float
    ) -> None:
        """Send bursts of sequential requests, with pauses."""
        rng = random.Random(self.seed + number)
        while time.monotonic() < until:
            for _ in range(rng.randint(1, 6)):
                if time.monotonic() >= until:
                    return
                request = random_request(
                    rng, [self.guest] if self.guest and rng.random() < 0.05 else choose_models()
                )
                if self.keys and number % 2:  # so that the exact usage of half of them is known
                    request = replace(request, disconnects_after=None, first_byte_timeout_s=None)
                await self._send(http, number, request, rng, until)
            await asyncio.sleep(rng.expovariate(3.0))

    async def _send(
        self, http: httpx.AsyncClient, number: int, request: Request, rng: random.Random, until: float
    ) -> None:
        """Send a request, with retries after failures, as clients do. Each attempt is recorded."""
        key = self.keys[number] if self.keys else ""
        for attempt in range(1 + self.num_retries):
            answer = await send(http, request, key, self.timeout_s)
            self.attempts.append(replace(answer, client=number, is_retry=attempt > 0))
            is_final = answer.outcome is not Outcome.FAILED or answer.status in _NOT_RETRIED
            if is_final or time.monotonic() >= until:
                return
            await asyncio.sleep(rng.uniform(*_RETRY_PAUSE_S))

    def _model_phases(self, began: float, phase_s: float) -> Callable[[], list[str]]:
        """The models used now: all of them, then one, then two, so that the others may expire."""

        def current_models() -> list[str]:
            phase = int((time.monotonic() - began) / phase_s)
            rng = random.Random(self.seed + phase)
            return list(self.models) if phase % 3 == 0 else rng.sample(list(self.models), phase % 3)

        return current_models
