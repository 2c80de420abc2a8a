"""The fields that control sampling and scheduling, which the bodies of all protocols have.

Ranges are OpenAI's and vLLM's. A new parameter stands here, in SamplingParams and where it is applied. Stop
strings and the maximum of tokens are not here, since each protocol has its own names for them.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from engine.server.protocol import body_limits
from engine.server.protocol.limits import MAX_LISTED, MAX_SALT
from engine.server.protocol.request_body import MINUS_ONE_AS_NONE, Strict, null_as

_INT64 = 2**63
_INT64_DIGITS = 19
_LEAST_PENALTY = 0.01  # a smaller divisor can overflow a logit

FROM_CHECKPOINT = object()
"""Marks a field that the checkpoint's generation_config.json sets if the body doesn't."""


class StructuredOutputs(Strict):
    """vLLM's output constraints; exactly one must be given."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=MAX_LISTED)] | None = None
    grammar: str | None = None
    structural_tag: str | None = None

    @model_validator(mode="after")
    def _check_one(self) -> StructuredOutputs:
        given = [name for name in STRUCTURED_KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            names = ", ".join(name.rstrip("_") for name in STRUCTURED_KINDS)
            raise ValueError(f"give exactly one of {names}, not {len(given)}")
        return self


STRUCTURED_KINDS = ("json_", "json_object", "regex", "choice", "grammar", "structural_tag")


def _check_bias(value: dict[str, float]) -> dict[str, float]:
    for token, bias in value.items():
        if not token.isascii() or not token.isdigit() or len(token) > _INT64_DIGITS:
            raise ValueError(f"keys must be token ids, and {token[:40]!r} is not one")
        if not -100 <= bias <= 100:
            raise ValueError(f"biases must be between -100 and 100; the bias of token {token} is {bias}")
    return value


TokenId = Annotated[int, Field(ge=0, lt=_INT64)]
CacheSalt = Annotated[
    Annotated[str, Field(min_length=1, max_length=MAX_SALT)] | None,
    Field(description="Cached prefixes are shared only between prompts with the same salt and API key."),
]


class SamplingFields(Strict):
    """None means not given."""

    size_limits = body_limits.SAMPLING

    min_tokens: Annotated[int, Field(ge=0), null_as(0)] = Field(
        default=0, description="No stop token or stop string ends the output before this many tokens."
    )
    temperature: Annotated[float | None, FROM_CHECKPOINT] = Field(
        default=None, ge=0, le=2, description="0 = greedy decoding."
    )
    top_p: Annotated[float | None, FROM_CHECKPOINT] = Field(default=None, gt=0, le=1)
    top_k: Annotated[int | None, FROM_CHECKPOINT] = Field(
        default=None, ge=-1, description="0 and -1 = all tokens."
    )
    min_p: Annotated[float | None, FROM_CHECKPOINT] = Field(default=None, ge=0, le=1)
    seed: Annotated[int | None, MINUS_ONE_AS_NONE] = Field(
        default=None, ge=-_INT64, lt=_INT64, description="-1 = any."
    )
    presence_penalty: Annotated[float, Field(ge=-2, le=2), null_as(0.0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2), null_as(0.0)] = 0.0
    repetition_penalty: Annotated[float | None, FROM_CHECKPOINT] = Field(
        default=None, ge=_LEAST_PENALTY, le=10, description="1 = none."
    )
    logit_bias: Annotated[
        dict[str, float],
        Field(max_length=MAX_LISTED),
        null_as({}),
        AfterValidator(_check_bias),
    ] = Field(default={}, description="Token id → -100 … 100, added to its logit.")
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, fail_fast=True)] | None = None
    bad_words: Annotated[
        list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_LISTED), null_as([])
    ] = Field(default=[], description="Words that must not be generated; they are tokenized by the server.")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_LISTED), null_as([])] = Field(default=[])
    include_stop_str_in_output: Annotated[bool, null_as(False)] = False
    ignore_eos: Annotated[bool, null_as(False)] = False
    skip_special_tokens: Annotated[bool, null_as(True)] = True
    spaces_between_special_tokens: Annotated[bool, null_as(True)] = Field(
        default=True,
        description="Without effect, as with vLLM's fast tokenizers: no spaces are added.",
    )
    structured_outputs: StructuredOutputs | None = None
    stream_interval: int | None = Field(
        default=None,
        ge=1,
        description="Tokens per chunk of a stream, but for the first and last; at least `--stream-interval`.",
    )
    priority: Annotated[int, Field(ge=-_INT64, lt=_INT64), null_as(0)] = Field(
        default=0, description="Lower values run first."
    )
    request_id: str | None = Field(default=None, min_length=1, max_length=256, pattern=r"^[!-~]+$")
    cache_salt: CacheSalt = None


CHECKPOINT_FIELDS = tuple(
    name for name, field in SamplingFields.model_fields.items() if FROM_CHECKPOINT in field.metadata
)
