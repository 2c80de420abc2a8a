"""Random requests, each with a prompt that shares no prefix with another."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LONG_PROMPT_WORDS = 600
_MAX_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `disconnects_after`: number of chunks after which the client disconnects."""

    model: str
    is_chat: bool
    is_stream: bool
    max_tokens: int
    prompt: str = field(repr=False)
    disconnects_after: int | None = None
    first_byte_timeout_s: float | None = None

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


def random_prompt(rng: random.Random, num_words: int) -> str:
    """Random words: no common prefix with other prompts, so that they fill an engine's cache."""
    return " ".join(str(rng.randrange(100)) for _ in range(num_words))


def random_request(rng: random.Random, models: Sequence[str]) -> Request:
    """A random request."""
    is_stream = rng.random() < 0.5
    max_tokens = rng.randint(1, _MAX_TOKENS)
    return Request(
        model=rng.choice(models),
        is_chat=rng.random() < 0.5,
        is_stream=is_stream,
        max_tokens=max_tokens,
        prompt=random_prompt(rng, LONG_PROMPT_WORDS if rng.random() < 0.05 else rng.randint(1, 20)),
        disconnects_after=rng.randint(1, max_tokens) if is_stream and rng.random() < 0.15 else None,
        first_byte_timeout_s=rng.uniform(0.02, 1.0) if rng.random() < 0.05 else None,
    )
