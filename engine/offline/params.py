"""Parameters of a call, with vLLM's names; the server's bodies check them, so errors are the server's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Any

from engine.errors import InvalidRequest
from engine.server.protocol.body_reader import check
from engine.server.protocol.completion_body import CompletionBody

_OF_CHATS = ("thinking_token_budget",)  # a completion refuses it


@dataclass(kw_only=True)
class StructuredOutputsParams:
    """What the output must follow; exactly one of them."""

    json: str | dict[str, Any] | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    structural_tag: str | None = None


@dataclass(kw_only=True)
class SamplingParams:
    """How a prompt is continued. Checked when it is made and, as it may be changed, again when it is used."""

    n: int = 1
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 and -1 = all tokens
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16  # None = as many as fit
    min_tokens: int = 0
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    bad_words: list[str] | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None
    thinking_token_budget: int | None = None
    detokenize: bool = True  # False: the output has no text
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True

    def __post_init__(self) -> None:
        """Raises InvalidRequest that names the field."""
        body = {name: value for name, value in self.body_fields().items() if name not in _OF_CHATS}
        check({**body, "prompt": [0]}, CompletionBody)

    def body_fields(self) -> dict[str, Any]:
        """The fields of a request's body."""
        body = {field.name: as_json(getattr(self, field.name)) for field in fields(self)}
        del body["detokenize"]
        if self.max_tokens is None:
            body["max_tokens"] = -1
        return {name: value for name, value in body.items() if value is not None}


@dataclass(frozen=True)
class LoRARequest:
    """An adapter for a call; the first call with it loads it. `lora_int_id` is vLLM's, and not needed."""

    lora_name: str
    lora_int_id: int = 0
    lora_path: str = ""


@dataclass(kw_only=True)
class PoolingParams:
    """How a model's values are made of a text."""

    dimensions: int | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None

    def body_fields(self) -> dict[str, Any]:
        body = {field.name: as_json(getattr(self, field.name)) for field in fields(self)}
        return {name: value for name, value in body.items() if value is not None}


def as_json(value: Any) -> Any:
    """A program's value as if it had been read from JSON, as far as it can be; the rest is checked later."""
    if is_dataclass(value) and not isinstance(value, type):
        return as_json({field.name: getattr(value, field.name) for field in fields(value)})
    if isinstance(value, Mapping):
        return {_key(name): as_json(inner) for name, inner in value.items()}
    if hasattr(value, "tolist"):  # NumPy's and torch's arrays and numbers
        return value.tolist()
    if isinstance(value, Collection) and not isinstance(value, str | bytes):
        plain = list(value)
        return plain if set(map(type, plain)) <= {int, str} else [as_json(inner) for inner in plain]
    return value


def _key(name: Any) -> Any:
    return str(name) if isinstance(name, int) and not isinstance(name, bool) else name


def per_prompt(
    name: str, given: Any, kind: type[Any], count: int, *, none_is_one: bool = False
) -> Sequence[Any]:
    """One value for each prompt: `given` is one for all, or a list of as many, which may hold None where
    `none_is_one`. Raises InvalidRequest.
    """
    each = list(given) if isinstance(given, Sequence) and not isinstance(given, kind) else [given] * count
    if len(each) != count:
        raise InvalidRequest(
            f"{name} has {len(each)} entries for {count} prompts: give one for all, or one for each.",
            param=name,
        )
    kinds = (kind, NoneType) if none_is_one else kind
    for wrong in (one for one in each if not isinstance(one, kinds)):
        raise InvalidRequest(f"{name} must be {kind.__name__}, not {type(wrong).__name__}.", param=name)
    return each
