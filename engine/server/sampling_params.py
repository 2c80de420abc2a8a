"""From a checked body and a prompt's length to SamplingParams: defaults, the context's limit, seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import InvalidRequest
from engine.server.errors import PromptTooLong
from engine.server.protocol import GenerationBody
from engine.types import SamplingParams

_SEED_MASK = 2**63 - 1  # the engine's seeds are not negative


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """How many tokens a body asks for, and how its fields are called, for errors."""

    asked: int | None  # None = all that there is room for
    param: str
    prompt_param: str

    def within(self, max_model_len: int, *, num_prompt_tokens: int, min_tokens: int) -> int:
        """How many tokens may be generated.

        Raises PromptTooLong if the prompt leaves no room, InvalidRequest if the numbers can't be meant.
        """
        if self.asked is not None and self.asked > max_model_len:
            raise InvalidRequest(
                f"{self.param} {self.asked} is more than the model's context of {max_model_len} tokens.",
                param=self.param,
            )
        if self.asked is not None and min_tokens > self.asked:
            raise InvalidRequest(
                f"min_tokens {min_tokens} is more than {self.param} {self.asked}.", param="min_tokens"
            )
        needed = 0 if self.asked == 0 else 1
        if num_prompt_tokens + needed > max_model_len:
            raise PromptTooLong(
                f"The prompt has {num_prompt_tokens} tokens, the model's context is {max_model_len} tokens, "
                "of prompt and output together.",
                param=self.prompt_param,
            )
        room = max_model_len - num_prompt_tokens
        return room if self.asked is None else min(self.asked, room)


def make_sampling_params(
    body: GenerationBody, defaults: Mapping[str, Any], *, max_tokens: int, seed: int
) -> SamplingParams:
    """`defaults` are the checkpoint's, for what the body leaves open."""

    def pick(name: str, neutral: float) -> Any:
        given = getattr(body, name)
        return defaults.get(name, neutral) if given is None else given

    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min(body.min_tokens, max_tokens),
        temperature=float(pick("temperature", 1.0)),
        top_p=float(pick("top_p", 1.0)),
        top_k=max(int(pick("top_k", 0)), 0),
        min_p=float(pick("min_p", 0.0)),
        seed=seed & _SEED_MASK,
        stop_token_ids=frozenset(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
    )
