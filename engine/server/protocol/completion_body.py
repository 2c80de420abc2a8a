"""The body of /v1/completions, checked as OpenAI and vLLM document it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from engine.errors import InvalidRequest
from engine.server.protocol import body_limits
from engine.server.protocol.generation_body import GenerationBody
from engine.server.protocol.limits import MAX_PROMPTS
from engine.server.protocol.request_body import MINUS_ONE_AS_NONE, null_as

TokenIds = list[int]


def are_ids(values: list[Any]) -> bool:
    """Whether all are integers ≥ 0, without a Python-level loop: there can be millions."""
    return set(map(type, values)) <= {int} and min(values, default=0) >= 0


def _check_prompt(value: Any) -> list[str | TokenIds]:
    """Any of the four forms, as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if are_ids(value):
            return [value]
        if all(isinstance(item, str) for item in value) or all(
            isinstance(item, list) and are_ids(item) for item in value
        ):
            return value
    raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists")


_TOKEN_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
        _TOKEN_IDS_SCHEMA,
        {"type": "array", "items": _TOKEN_IDS_SCHEMA, "minItems": 1, "maxItems": MAX_PROMPTS},
    ]
}


class CompletionBody(GenerationBody):
    size_limits = body_limits.COMPLETION

    max_tokens: Annotated[int | None, MINUS_ONE_AS_NONE, null_as(16)] = Field(
        default=16, ge=0, description="-1 = as many as fit."
    )
    prompt: Annotated[list[Any], BeforeValidator(_check_prompt), WithJsonSchema(_PROMPT_SCHEMA)]
    echo: Annotated[bool, null_as(False)] = False
    logprobs: int | None = Field(default=None, ge=-1, description="-1 = the whole vocabulary.")
    add_special_tokens: Annotated[bool, null_as(True)] = True

    @model_validator(mode="after")
    def _check_named_logprobs(self) -> CompletionBody:
        if self.logprob_token_ids is not None and self.max_tokens == 0:
            raise InvalidRequest(
                "logprob_token_ids needs max_tokens > 0: it applies to output tokens.",
                param="logprob_token_ids",
            )
        return self

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs
