"""From a checked body and a prompt's length to SamplingParams: defaults, the context's limit, seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import InvalidRequest
from engine.server.errors import PromptTooLong
from engine.server.protocol import GenerationBody
from engine.types import SamplingParams

_SEED_MASK = 2**63 - 1  # the engine's seeds are not negative


def clamp_max_tokens(asked: int | None, *, num_prompt_tokens: int, max_model_len: int, param: str) -> int:
    """How many tokens may be generated: what was asked for (None: all there is room for), within the context.

    Raises PromptTooLong if the prompt leaves no room, InvalidRequest if the number can't be meant.
    """
    if asked is not None and asked > max_model_len:
        raise InvalidRequest(
            f"{param} {asked} is more than the model's context of {max_model_len}.", param=param
        )
    needed = 0 if asked == 0 else 1
    if num_prompt_tokens + needed > max_model_len:
        raise PromptTooLong(
            f"The prompt has {num_prompt_tokens} tokens, the model's context is {max_model_len} tokens, "
            "of prompt and output together.",
            param="prompt" if param == "max_tokens" else "messages",
        )
    room = max_model_len - num_prompt_tokens
    return room if asked is None else min(asked, room)


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
