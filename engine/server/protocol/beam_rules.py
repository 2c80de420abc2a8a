"""What a request with beams may ask for: how many there may be, and what else can't be had beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import InvalidRequest
from engine.server.protocol.limits import MAX_BEAM_TOKENS, MAX_BEAMS

# Fields that would change a search, and aren't part of one: by name, with the values that ask for nothing.
_ASIDE: Mapping[str, tuple[Any, ...]] = {
    "stream": (False,),
    "stop": ([],),
    "stop_token_ids": ([],),
    "min_tokens": (0,),
    "logit_bias": ({},),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "prompt_logprobs": (),
    "logprob_token_ids": (),
    "structured_outputs": (),
    "tool_choice": ("none", "auto"),
    "thinking_token_budget": (-1,),
}


def check_beam_fields(body: Any) -> None:
    """Raise InvalidRequest for a field of a generation's body that can't be had with beams."""
    for name, neutral in _ASIDE.items():
        value = getattr(body, name, None)
        if value is not None and value not in neutral:
            raise _refusal(name)
    if body.response_format is not None and body.response_format.type != "text":
        raise _refusal("response_format")
    if body.n > MAX_BEAMS:
        raise InvalidRequest(
            f"n {body.n} with use_beam_search: no more than {MAX_BEAMS} beams are possible.", param="n"
        )


def check_beams(
    body: Any, *, longest: int, is_constrained: bool, scores_prompt: bool, vocab_size: int
) -> None:
    """Raise InvalidRequest for what only shows with the prompts; `longest`: the most tokens of a beam."""
    if is_constrained:
        raise _refusal("use_beam_search", "tools or a format that constrain the output")
    if scores_prompt:
        raise _refusal("echo", "echo together with logprobs")
    if body.n * longest > MAX_BEAM_TOKENS:
        raise InvalidRequest(
            f"n {body.n} beams of up to {longest} tokens: together they may have {MAX_BEAM_TOKENS} at most. "
            "Ask for fewer beams, or for less with max_tokens.",
            param="n",
        )
    if 2 * body.n > vocab_size:
        raise InvalidRequest(f"n {body.n}: the model has only {vocab_size} tokens.", param="n")


def _refusal(param: str, what: str | None = None) -> InvalidRequest:
    return InvalidRequest(f"{what or param} can't be had with use_beam_search.", param=param)
