"""Checks requests with beam search: the number of beams, and fields that conflict with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import InvalidRequest
from engine.server.protocol.limits import MAX_BEAM_TOKENS, MAX_BEAMS
from engine.server.protocol.sampling_fields import SamplingFields

# Sampling fields that apply to beams, or that would change nothing.
_SUPPORTED = frozenset(
    [
        "cache_salt",
        "ignore_eos",
        "include_stop_str_in_output",
        "min_p",
        "priority",
        "request_id",
        "seed",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stream_interval",
        "temperature",
        "top_k",
        "top_p",
    ]
)

# Fields that beam search does not support, with the neutral values that are accepted.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **{
        name: (field.default,)
        for name, field in SamplingFields.model_fields.items()
        if name not in _SUPPORTED
    },
    "repetition_penalty": (1.0,),
    "stream": (False,),
    "stop": ([],),
    "prompt_logprobs": (),
    "logprob_token_ids": (),
    "tool_choice": ("none", "auto"),
    "thinking_token_budget": (-1,),
}


def check_beam_fields(body: Any) -> None:
    """Raise InvalidRequest for a field that beam search does not support."""
    for name, neutral in _UNSUPPORTED.items():
        value = getattr(body, name, None)
        if value is not None and value not in neutral:
            raise _refusal(name)
    if body.response_format is not None and body.response_format.type != "text":
        raise _refusal("response_format")
    if body.n > MAX_BEAMS:
        raise InvalidRequest(f"n {body.n} with use_beam_search: the maximum is {MAX_BEAMS} beams.", param="n")


def check_beams(
    body: Any, *, longest: int, is_constrained: bool, scores_prompt: bool, vocab_size: int
) -> None:
    """The checks that need the prompts. `longest`: the maximum tokens of a beam. Raises InvalidRequest."""
    if is_constrained:
        raise _refusal("use_beam_search", "output constrained by tools or a format")
    if scores_prompt:
        raise _refusal("echo", "echo together with logprobs")
    if body.n * longest > MAX_BEAM_TOKENS:
        raise InvalidRequest(
            f"n {body.n} beams of up to {longest} tokens: together they may have {MAX_BEAM_TOKENS} tokens. "
            "Reduce n or max_tokens.",
            param="n",
        )
    if 2 * body.n > vocab_size:
        raise InvalidRequest(f"n {body.n} is too large for a vocabulary of {vocab_size} tokens.", param="n")


def _refusal(param: str, what: str | None = None) -> InvalidRequest:
    return InvalidRequest(f"{what or param} is not supported with use_beam_search.", param=param)
