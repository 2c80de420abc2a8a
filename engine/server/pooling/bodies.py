"""Request bodies of a pooling server, checked as OpenAI, vLLM, Jina and Cohere document them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from engine.errors import InvalidRequest
from engine.pooling.plan import Task
from engine.server.protocol import body_limits
from engine.server.protocol.completion_body import TokenIds, are_ids
from engine.server.protocol.conversation_body import ConversationBody, TextPart
from engine.server.protocol.field_rules import FieldRules
from engine.server.protocol.limits import MAX_INPUTS
from engine.server.protocol.request_body import Ignored, RequestBody, Strict, null_as

_INT64 = 2**63

RULES = FieldRules(
    refused={
        "media_io_kwargs": ({},),
        "mm_processor_kwargs": ({},),
        "normalize": (),
        "padding": ("do_not_pad",),
    }
)


class PoolingOptions(RequestBody):
    """The options of every request to a pooling server."""

    size_limits = body_limits.POOLED

    user: Ignored = None
    truncate_prompt_tokens: int | None = Field(
        default=None, ge=-1, description="Truncate inputs to this many tokens; -1 = the model's limit."
    )
    truncation_side: Literal["left", "right"] | None = Field(
        default=None, description="The side that is truncated: `right` (the default) keeps the beginning."
    )
    request_id: str | None = Field(default=None, min_length=1, max_length=256, pattern=r"^[!-~]+$")
    priority: Annotated[int, null_as(0), Field(ge=-_INT64, lt=_INT64)] = 0
    cache_salt: str | None = Field(default=None, description="Without effect: nothing is cached.")
    use_activation: bool | None = Field(
        default=None,
        description="Whether to normalize vectors and turn logits into scores; default: the model's setting.",
    )


class VectorOptions(PoolingOptions):
    """The size and encoding of vectors."""

    dimensions: int | None = Field(
        default=None, ge=1, description="Only for models trained with Matryoshka dimensions."
    )
    encoding_format: Annotated[Literal["float", "base64"], null_as("float")] = "float"
    embed_dtype: Annotated[Literal["float32", "float16"], null_as("float32")] = "float32"
    endianness: Annotated[Literal["native", "little", "big"], null_as("native")] = "native"

    @model_validator(mode="after")
    def _check_encoding(self) -> VectorOptions:
        binary = self.encoding_format == "base64"
        if not binary and (self.embed_dtype != "float32" or self.endianness != "native"):
            raise InvalidRequest(
                "embed_dtype and endianness need encoding_format: base64.", param="encoding_format"
            )
        return self


def _check_input(value: Any) -> list[str | TokenIds]:
    """Any of the four forms, as a list of inputs."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if _are_ids(value):
            return [value]
        if all(isinstance(item, str) for item in value) or all(
            isinstance(item, list) and item and _are_ids(item) for item in value
        ):
            return value
    raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists")


def _are_ids(values: list[Any]) -> bool:
    return are_ids(values) and max(values) < _INT64


class InputBody(VectorOptions):
    """Texts or token ids."""

    size_limits = body_limits.POOLING

    input: Annotated[list[Any], BeforeValidator(_check_input)]
    add_special_tokens: Annotated[bool, null_as(True)] = True


class ConversationInputBody(ConversationBody, VectorOptions):
    """One conversation, rendered by the chat template."""

    add_generation_prompt: Annotated[bool, null_as(False)] = False


class PoolingBody(InputBody):
    task: Task | None = Field(default=None, strict=False, description="If given, must be the model's task.")


class PoolingConversationBody(ConversationInputBody):
    task: Task | None = Field(default=None, strict=False, description="If given, must be the model's task.")


class CohereContent(Strict):
    content: Annotated[list[TextPart], Field(min_length=1)]


class CohereEmbedBody(RequestBody):
    """Cohere's /v2/embed."""

    size_limits = body_limits.COHERE

    input_type: str | None = None
    texts: Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)] | None = None
    inputs: Annotated[list[CohereContent], Field(min_length=1, max_length=MAX_INPUTS)] | None = None
    output_dimension: int | None = Field(default=None, ge=1)
    embedding_types: (
        Annotated[list[Literal["float", "binary", "ubinary", "base64"]], Field(min_length=1)] | None
    ) = None
    truncate: Annotated[Literal["NONE", "START", "END"], null_as("END")] = "END"
    max_tokens: int | None = Field(default=None, ge=1)
    priority: Annotated[int, null_as(0), Field(ge=-_INT64, lt=_INT64)] = 0

    @model_validator(mode="after")
    def _check_inputs(self) -> CohereEmbedBody:
        if (self.texts is None) == (self.inputs is None):
            raise InvalidRequest("Give exactly one of texts and inputs.", param="texts")
        return self

    @property
    def all_texts(self) -> list[str]:
        if self.texts is not None:
            return self.texts
        return ["".join(part.text for part in item.content) for item in self.inputs or []]


COHERE_RULES = FieldRules(refused={"images": ([],)})


def _text_of(value: Any) -> Any:
    """The text of a string, of Jina's and Cohere's `{"text"}`, or of vLLM's `{"content": [text parts]}`."""
    if isinstance(value, dict) and set(value) == {"text"}:
        return value["text"]
    if isinstance(value, dict) and set(value) == {"content"} and isinstance(value["content"], list):
        parts = [TextPart.model_validate(part) for part in value["content"]]
        return "\n".join(part.text for part in parts)
    return value


def _texts_of(value: Any) -> Any:
    return [_text_of(item) for item in value] if isinstance(value, list) else [_text_of(value)]


OneText = Annotated[str, BeforeValidator(_text_of)]
Texts = Annotated[list[str], BeforeValidator(_texts_of), Field(min_length=1, max_length=MAX_INPUTS)]


class PairOptions(PoolingOptions):
    size_limits = body_limits.PAIRS

    max_tokens_per_query: Annotated[int, null_as(0), Field(ge=0)] = Field(
        default=0, description="Truncate the query to this many tokens; 0 = no separate limit."
    )
    max_tokens_per_doc: Annotated[int, null_as(0), Field(ge=0)] = Field(
        default=0, description="Truncate each document to this many tokens; 0 = no separate limit."
    )
    instruction: str | None = Field(default=None, description="Passed to the model's score template.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Passed to the model's score template."
    )

    @property
    def template_variables(self) -> dict[str, Any]:
        given = {} if self.instruction is None else {"instruction": self.instruction}
        return {**given, **(self.chat_template_kwargs or {})}


class RerankBody(PairOptions):
    """The rerank body of Jina, Cohere and vLLM: one query, many documents."""

    size_limits = body_limits.RANKED

    query: OneText
    documents: Texts
    top_n: Annotated[int, null_as(0), Field(ge=0)] = Field(default=0, description="0 = all.")
    return_documents: Annotated[bool, null_as(True)] = True


class ScoreBody(PairOptions):
    """Pairs of texts: one to one, one to many, or element by element."""

    size_limits = body_limits.SCORED

    text_1: Texts
    text_2: Texts

    @model_validator(mode="after")
    def _check_lengths(self) -> ScoreBody:
        left, right = len(self.text_1), len(self.text_2)
        if left not in (1, right):
            raise InvalidRequest(
                f"text_1 has {left} texts and text_2 has {right}: give one text_1, or as many as text_2.",
                param="text_2",
            )
        return self


SCORE_NAMES = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
"""Alternative names of text_1 and text_2."""
