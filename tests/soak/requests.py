"""What clients ask for: requests at random, that no other prompt begins like."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LONG_PROMPT_WORDS = 600
_MAX_TOKENS = 24


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
