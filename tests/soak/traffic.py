"""Clients that ask for models in turn, and what became of each of their requests."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import httpx

_ANSWER_TIMEOUT_S = 180.0  # without a byte for so long, a request counts as lost
_MOOD_S = 7.0  # how long all ask for the same few models
_MOODS_AT_LEAST = 5
_MAX_TOKENS = 24
LONG_PROMPT_WORDS = 600


class Outcome(Enum):
    """How a request ended for its client."""

    ANSWERED = "answered"
    LEFT = "left"  # on purpose
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `leaves_after`: pieces of a stream that are read; `patience_s`: until the first byte."""

    model: str
    is_chat: bool
    is_stream: bool
    max_tokens: int
    prompt: str = field(repr=False)
    leaves_after: int | None = None
    patience_s: float | None = None

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.is_chat else "/v1/completions"

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "ignore_eos": True,
            "stream": self.is_stream,
        }
        if self.is_chat:
            body["messages"] = [{"role": "user", "content": self.prompt}]
        else:
            body["prompt"] = self.prompt
        if self.is_stream:
            body["stream_options"] = {"include_usage": True}
        return body


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an ask. `wait_s`: until its first token, of what isn't streamed until its end."""

    ask: Ask
    outcome: Outcome
    wait_s: float
    problem: str = ""


class WrongAnswer(Exception):
    """An answer came that isn't what was asked for."""


@dataclass(slots=True)
class Traffic:
    """Clients over one base URL, until the time is out; each finishes the request that it is at."""

    base_url: str
    models: Sequence[str]
    num_clients: int
    seed: int = 0
    answers: list[Answer] = field(default_factory=list)

    async def run(self, seconds: float) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.num_clients)
        timeout = httpx.Timeout(_ANSWER_TIMEOUT_S)
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
                clients.create_task(self._client(http, random.Random(self.seed + number), moods, until))

    async def fill(self, num_prompts: int) -> None:
        """Ask each model for one token after each of so many long prompts. Raises WrongAnswer."""
        dice = random.Random(self.seed)
        async with httpx.AsyncClient(
            base_url=self.base_url, timeout=_ANSWER_TIMEOUT_S, trust_env=False
        ) as http:
            for model in self.models:
                for _ in range(num_prompts):
                    prompt = random_prompt(dice, LONG_PROMPT_WORDS)
                    answer = await send(http, Ask(model, False, False, 1, prompt))
                    if answer.outcome is not Outcome.ANSWERED:
                        raise WrongAnswer(answer.problem)

    async def _client(
        self, http: httpx.AsyncClient, dice: random.Random, moods: Callable[[], list[str]], until: float
    ) -> None:
        """Bursts: some requests one after the other, then a pause."""
        while time.monotonic() < until:
            for _ in range(dice.randint(1, 6)):
                if time.monotonic() >= until:
                    return
                self.answers.append(await send(http, draw(dice, moods())))
            await asyncio.sleep(dice.expovariate(3.0))

    def _moods(self, began: float, mood_s: float) -> Callable[[], list[str]]:
        """What is asked for now: all models, then one, then two: so the others may fall asleep."""

        def favourites() -> list[str]:
            mood = int((time.monotonic() - began) / mood_s)
            dice = random.Random(self.seed + mood)
            return list(self.models) if mood % 3 == 0 else dice.sample(list(self.models), mood % 3)

        return favourites


def random_prompt(dice: random.Random, num_words: int) -> str:
    """Words that no other prompt begins with, so that they fill an engine's cache."""
    return " ".join(str(dice.randrange(100)) for _ in range(num_words))


def draw(dice: random.Random, models: Sequence[str]) -> Ask:
    """A request at random."""
    is_stream = dice.random() < 0.5
    max_tokens = dice.randint(1, _MAX_TOKENS)
    return Ask(
        model=dice.choice(models),
        is_chat=dice.random() < 0.5,
        is_stream=is_stream,
        max_tokens=max_tokens,
        prompt=random_prompt(dice, LONG_PROMPT_WORDS if dice.random() < 0.05 else dice.randint(1, 20)),
        leaves_after=dice.randint(1, max_tokens) if is_stream and dice.random() < 0.15 else None,
        patience_s=dice.uniform(0.02, 1.0) if dice.random() < 0.05 else None,
    )


async def send(http: httpx.AsyncClient, ask: Ask) -> Answer:
    """Send it and check every piece of what comes."""
    began = time.monotonic()
    first_at: list[float] = []
    outcome, problem = Outcome.FAILED, ""
    try:
        outcome = await (_stream if ask.is_stream else _plain)(http, ask, first_at)
    except TimeoutError:
        outcome = Outcome.LEFT
    except WrongAnswer as error:
        problem = str(error)
    except httpx.HTTPError as error:
        problem = repr(error)
    wait_s = (first_at[0] if first_at else time.monotonic()) - began
    return Answer(ask, outcome, wait_s, problem)


async def _plain(http: httpx.AsyncClient, ask: Ask, first_at: list[float]) -> Outcome:
    async with asyncio.timeout(ask.patience_s):
        response = await http.post(ask.path, json=ask.body())
    first_at.append(time.monotonic())
    if response.status_code != 200:
        raise WrongAnswer(f"{response.status_code} {response.text[:500]}")
    answer = response.json()
    _check_piece(ask, answer)
    _check_usage(ask, answer)
    if answer["choices"][0]["finish_reason"] != "length":
        raise WrongAnswer(f"it ended otherwise than by its length: {answer}")
    return Outcome.ANSWERED


async def _stream(http: httpx.AsyncClient, ask: Ask, first_at: list[float]) -> Outcome:
    async with http.stream("POST", ask.path, json=ask.body()) as response:
        if response.status_code != 200:
            raise WrongAnswer(f"{response.status_code} {(await response.aread()).decode()[:500]}")
        pieces = _data_lines(response)
        async with asyncio.timeout(ask.patience_s):
            last = await anext(pieces, "")
        first_at.append(time.monotonic())
        usage: dict[str, Any] | None = None
        number = 0
        while last not in ("", "[DONE]"):
            piece = json.loads(last)
            _check_piece(ask, piece)
            usage = piece if piece.get("usage") else usage
            number += 1
            if ask.leaves_after == number:
                return Outcome.LEFT
            last = await anext(pieces, "")
        if last != "[DONE]" or await anext(pieces, ""):
            raise WrongAnswer(f"the stream of {number} pieces did not end with [DONE] but with {last!r}")
    _check_usage(ask, usage or {})
    return Outcome.ANSWERED


async def _data_lines(response: httpx.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            yield line.removeprefix("data:").strip()


def _check_piece(ask: Ask, piece: dict[str, Any]) -> None:
    if "error" in piece:
        raise WrongAnswer(f"an error in the answer: {piece}")
    if piece["model"] != ask.model:
        raise WrongAnswer(f"{ask.model} was asked for, and {piece['model']} has answered: {piece}")


def _check_usage(ask: Ask, piece: dict[str, Any]) -> None:
    counted = (piece.get("usage") or {}).get("completion_tokens")
    if counted != ask.max_tokens:
        raise WrongAnswer(f"{ask.max_tokens} tokens were asked for, and {counted} have come: {piece}")
