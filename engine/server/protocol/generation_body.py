"""The base of completion and chat bodies: the fields that control generation.

Ranges are OpenAI's and vLLM's. Types are strict: a number in quotes is an error.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from engine.errors import InvalidRequest
from engine.server.protocol import body_limits
from engine.server.protocol.beam_rules import check_beam_fields
from engine.server.protocol.limits import (
    MAX_BEAMS,
    MAX_CHOICES,
    MAX_LISTED,
    MAX_NAMED_LOGPROBS,
    MAX_SALT,
    MAX_STOPS,
)
from engine.server.protocol.size_limit import SizeLimit

_INT64 = 2**63
_INT64_DIGITS = 19
_LEAST_PENALTY = 0.01  # a smaller divisor can overflow a logit


class Strict(BaseModel):
    """Unknown fields are errors, unless body_reader.py drops and reports them."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    size_limits: ClassVar[tuple[SizeLimit, ...]] = ()
    """The size limits of a body's own fields."""

    @classmethod
    def all_size_limits(cls) -> tuple[SizeLimit, ...]:
        """Also those of base classes, except for fields that a subclass limits itself."""
        size_limits: dict[str, tuple[SizeLimit, ...]] = {}
        for base in cls.__mro__:
            own: dict[str, tuple[SizeLimit, ...]] = {}
            for limit in vars(base).get("size_limits", ()):
                own[limit.field] = (*own.get(limit.field, ()), limit)
            size_limits = own | size_limits
        return tuple(limit for of_field in size_limits.values() for limit in of_field)


def null_as(default: Any) -> BeforeValidator:
    """Treat null as not given, as both protocols do."""
    return BeforeValidator(lambda value: default if value is None else value)


MINUS_ONE_AS_NONE = BeforeValidator(lambda value: None if value == -1 else value)
"""Clients of other servers send -1 for no limit, or for a random seed."""
Ignored = Annotated[Any, Field(exclude=True, description="Accepted, without effect.")]
"""The type of fields that clients send back and that have no effect: `annotations: Ignored = None`."""

# The description of a tool's `strict`, in chats and in Responses.
STRICT_TOOL = (
    "If true, or if a call is forced, calls follow the schema of `parameters`, and a schema that can't be "
    "enforced completely is refused; with false, forced calls follow the enforceable part."
)


class RequestBody(Strict):
    size_limits = body_limits.NAMED

    model: str | None = Field(default=None, description="Default: the served model.")


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


def _check_stops(value: str | list[str] | None) -> list[str]:
    stops = [value] if isinstance(value, str) else value or []
    if len(stops) > MAX_STOPS:
        raise ValueError(f"at most {MAX_STOPS} stop strings, not {len(stops)}")
    if "" in stops:
        raise ValueError("stop strings must not be empty")
    return stops


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


class GenerationBody(RequestBody):
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
    min_tokens: Annotated[int, Field(ge=0), null_as(0)] = Field(
        default=0, description="No stop token or stop string ends the output before this many tokens."
    )
    temperature: float | None = Field(default=None, ge=0, le=2, description="0 = greedy decoding.")
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, description="0 and -1 = all tokens.")
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: Annotated[int | None, MINUS_ONE_AS_NONE] = Field(
        default=None, ge=-_INT64, lt=_INT64, description="-1 = any."
    )
    presence_penalty: Annotated[float, Field(ge=-2, le=2), null_as(0.0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2), null_as(0.0)] = 0.0
    repetition_penalty: float | None = Field(default=None, ge=_LEAST_PENALTY, le=10, description="1 = none.")
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
    stop: Annotated[
        str | Annotated[list[str], Field(fail_fast=True)] | None, AfterValidator(_check_stops)
    ] = Field(default=[], description=f"At most {MAX_STOPS} strings that end the output.")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_LISTED), null_as([])] = []
    include_stop_str_in_output: Annotated[bool, null_as(False)] = False
    ignore_eos: Annotated[bool, null_as(False)] = False
    skip_special_tokens: Annotated[bool, null_as(True)] = True
    spaces_between_special_tokens: Annotated[bool, null_as(True)] = Field(
        default=True,
        description="Without effect, as with vLLM's fast tokenizers: no spaces are added.",
    )
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
    structured_outputs: StructuredOutputs | None = None
    return_token_ids: Annotated[bool, null_as(False)] = False
    return_tokens_as_token_ids: Annotated[bool, null_as(False)] = Field(
        default=False, description='In logprobs, tokens are written as "token_id:17".'
    )
    stream: Annotated[bool, null_as(False)] = False
    stream_options: StreamOptions | None = None
    stream_interval: int | None = Field(
        default=None,
        ge=1,
        description="Tokens per chunk of a stream, but for the first and last; at least `--stream-interval`.",
    )
    priority: Annotated[int, Field(ge=-_INT64, lt=_INT64), null_as(0)] = Field(
        default=0, description="Lower values run first."
    )
    request_id: str | None = Field(default=None, min_length=1, max_length=256, pattern=r"^[!-~]+$")
    user: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    cache_salt: CacheSalt = None
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
