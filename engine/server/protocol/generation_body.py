"""The base of completion and chat bodies: what only they have besides the sampling fields.

Ranges are OpenAI's and vLLM's. Types are strict: a number in quotes is an error.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from engine.errors import InvalidRequest
from engine.server.protocol import body_limits
from engine.server.protocol.beam_rules import check_beam_fields
from engine.server.protocol.limits import (
    MAX_BEAMS,
    MAX_CHOICES,
    MAX_NAMED_LOGPROBS,
    MAX_STOPS,
)
from engine.server.protocol.request_body import Ignored, RequestBody, Strict, null_as
from engine.server.protocol.sampling_fields import SamplingFields, TokenId

# The description of a tool's `strict`, in chats and in Responses.
STRICT_TOOL = (
    "If true, or if a call is forced, calls follow the schema of `parameters`, and a schema that can't be "
    "enforced completely is refused; with false, forced calls follow the enforceable part."
)


class StreamOptions(Strict):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False
    include_obfuscation: Ignored = None


class JsonSchema(Strict):
    """`json_schema` of OpenAI's response format. The output always follows the schema."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = Field(
        default=None,
        description="A schema that can't be enforced completely is refused; with false, the output "
        "follows the enforceable part.",
    )


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


_LONG_STRINGS = r"Strings with a `maxLength` over 256 contain no escapes such as `\n`."


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema = Field(description=_LONG_STRINGS)


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


def _check_stops(value: str | list[str] | None) -> list[str]:
    stops = [value] if isinstance(value, str) else value or []
    if len(stops) > MAX_STOPS:
        raise ValueError(f"at most {MAX_STOPS} stop strings, not {len(stops)}")
    if "" in stops:
        raise ValueError("stop strings must not be empty")
    return stops


StopStrings = Annotated[
    str | Annotated[list[str], Field(fail_fast=True)] | None,
    AfterValidator(_check_stops),
    Field(description=f"At most {MAX_STOPS} strings that end the output."),
]


class GenerationBody(SamplingFields, RequestBody):
    """The fields shared by completions and chats. None means not given."""

    size_limits = body_limits.GENERATION

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), null_as(1)] = 1
    use_beam_search: Annotated[bool, null_as(False)] = Field(
        default=False,
        description=f"Return the `n` best results of a search with `n` beams (at most {MAX_BEAMS}).",
    )
    length_penalty: Annotated[float, Field(ge=-10, le=10), null_as(1.0)] = Field(
        default=1.0, description="Beam scores are divided by length ** length_penalty."
    )
    max_tokens: int | None = Field(default=None, ge=0)
    stop: StopStrings = Field(default=[])
    logprob_token_ids: (
        Annotated[list[TokenId], Field(min_length=1, max_length=MAX_NAMED_LOGPROBS, fail_fast=True)] | None
    ) = Field(
        default=None,
        description="With logprobs: return those of these tokens instead of the most likely ones.",
    )
    prompt_logprobs: int | None = Field(default=None, ge=-1, description="-1 = the whole vocabulary.")
    truncate_prompt_tokens: int | None = Field(
        default=None, ge=-1, description="Keep this many prompt tokens; -1 = as many as fit."
    )
    truncation_side: Literal["left", "right"] | None = Field(
        default=None, description="The side from which tokens are removed; default left."
    )
    response_format: ResponseFormat | None = None
    return_token_ids: Annotated[bool, null_as(False)] = False
    return_tokens_as_token_ids: Annotated[bool, null_as(False)] = Field(
        default=False, description='In logprobs, tokens are written as "token_id:17".'
    )
    stream: Annotated[bool, null_as(False)] = False
    stream_options: StreamOptions | None = None
    user: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    keep_alive: str | float | None = Field(default=None, description="Used by Berth's gateway.")

    @model_validator(mode="after")
    def _check_together(self) -> GenerationBody:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream: true.", param="stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidRequest(
                "prompt_logprobs is not supported with stream: true.", param="prompt_logprobs"
            )
        if self.logprob_token_ids is not None and self.num_logprobs is None:
            raise InvalidRequest("logprob_token_ids needs logprobs.", param="logprob_token_ids")
        if self.use_beam_search:
            check_beam_fields(self)
        formatted = self.response_format is not None and self.response_format.type != "text"
        if formatted and self.structured_outputs is not None:
            raise InvalidRequest(
                "structured_outputs conflicts with response_format: give only one of them.",
                param="structured_outputs",
            )
        return self

    @property
    def stops(self) -> list[str]:
        return self.stop  # type: ignore[return-value]  # the validator has converted it to a list

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def logprobs_param(self) -> str:
        """The name of the field that sets `num_logprobs`."""
        return "logprobs"

    @property
    def num_logprobs(self) -> int | None:
        """The number of most likely tokens per position; None = no logprobs."""
        raise NotImplementedError
