"""SamplingParams from a validated body and the prompt's length: defaults, context limit, seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from engine.core.types import SamplingParams
from engine.errors import InvalidRequest, PromptTooLong
from engine.server.protocol.generation_body import GenerationBody
from engine.server.protocol.limits import MAX_BAD_WORD_TOKENS
from engine.server.protocol.sampling_fields import SamplingFields
from engine.text.tokenizer import Tokenizer

_MANY_WORDS = 64
_MANY_TOKENS = 16_384
_SEED_MASK = 2**63 - 1  # the engine's seeds are not negative
# The parameters that are numbers or switches, and their values without effect; the body's names are the same.
_NEUTRAL = {
    field.name: field.default
    for field in fields(SamplingParams)
    if field.name in SamplingFields.model_fields and isinstance(field.default, int | float)
}


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """The number of tokens that a body requests, and the names of its fields, for errors."""

    requested: int | None  # None = as many as fit
    param: str
    prompt_param: str
    is_cap: bool = False  # chat clients may request more than fits: they do not know the context length

    def resolve(self, max_model_len: int, *, num_prompt_tokens: int, min_tokens: int) -> int:
        """The maximum number of tokens to generate.

        Raises PromptTooLong if the prompt leaves no room, InvalidRequest if the numbers conflict.
        """
        if self.requested is not None and min_tokens > self.requested:
            raise InvalidRequest(
                f"min_tokens {min_tokens} is greater than {self.param} {self.requested}.", param="min_tokens"
            )
        needed = 0 if self.requested == 0 else 1
        wanted = needed if self.requested is None else self.requested
        if num_prompt_tokens + needed > max_model_len:
            raise PromptTooLong.of(max_model_len, num_prompt_tokens, wanted, part=self.prompt_param)
        if wanted > max_model_len and not self.is_cap:
            raise PromptTooLong.of(
                max_model_len, num_prompt_tokens, wanted, part=self.prompt_param, param=self.param
            )
        room = max_model_len - num_prompt_tokens
        return room if self.requested is None else min(self.requested, room)


@dataclass(frozen=True, slots=True)
class TokenConstraints:
    """A body's constraints on single tokens, as validated token ids."""

    logit_bias: Mapping[int, float]
    allowed_token_ids: tuple[int, ...] | None
    bad_words: tuple[tuple[int, ...], ...]
    stop_token_ids: frozenset[int] = frozenset()

    @staticmethod
    def is_expensive(body: GenerationBody) -> bool:
        """Whether building them would visibly delay streams."""
        return len(body.bad_words) > _MANY_WORDS or len(body.allowed_token_ids or ()) > _MANY_TOKENS

    @staticmethod
    def of(body: GenerationBody, tokenizer: Tokenizer, vocab_size: int) -> TokenConstraints:
        """Raises InvalidRequest for a token id outside the vocabulary."""
        for param, token_ids in (
            ("logit_bias", [int(token) for token in body.logit_bias]),
            ("allowed_token_ids", body.allowed_token_ids or []),
            ("stop_token_ids", body.stop_token_ids),
            ("logprob_token_ids", body.logprob_token_ids or []),
        ):
            highest = max(token_ids, default=0)
            if highest >= vocab_size:
                raise InvalidRequest(
                    f"{param}: token id {highest} is outside the vocabulary of {vocab_size} tokens.",
                    param=param,
                )
        allowed = body.allowed_token_ids
        return TokenConstraints(
            logit_bias={int(token): bias for token, bias in body.logit_bias.items()},
            allowed_token_ids=None if allowed is None else tuple(allowed),
            bad_words=tuple(_spellings(body.bad_words, tokenizer)),
            stop_token_ids=frozenset(body.stop_token_ids),
        )


def _spellings(words: Sequence[str], tokenizer: Tokenizer) -> Iterator[tuple[int, ...]]:
    """Each word's tokens at the start of a text, and after a space if it has as many tokens there."""
    texts = [text for word in words for text in (word.lstrip() or word, f" {word.lstrip()}")]
    if len(words) > _MANY_WORDS:
        encoded = tokenizer.encode_without_gil(texts, add_special_tokens=False)
    else:
        encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    for index in range(len(words)):
        bare, spaced = (tuple(tokens) for tokens in encoded[2 * index : 2 * index + 2])
        both = [bare] if len(spaced) != len(bare) or spaced == bare else [bare, spaced]
        for tokens in both:
            if len(tokens) > MAX_BAD_WORD_TOKENS:
                raise InvalidRequest(
                    f"bad_words[{index}]: at most {MAX_BAD_WORD_TOKENS} tokens, not {len(tokens)}.",
                    param=f"bad_words[{index}]",
                )
            if tokens:
                yield tokens


def check_logprobs(body: GenerationBody, param: str, max_logprobs: int) -> None:
    """Raise InvalidRequest for more logprobs than `max_logprobs`; -1 means no limit."""
    for name, wanted in ((param, body.num_logprobs), ("prompt_logprobs", body.prompt_logprobs)):
        if wanted is not None and max_logprobs >= 0 and not 0 <= wanted <= max_logprobs:
            raise InvalidRequest(
                f"{name} {wanted} exceeds this server's maximum of {max_logprobs} (--max-logprobs).",
                param=name,
            )


def make_sampling_params(
    body: GenerationBody,
    defaults: Mapping[str, Any],
    token_constraints: TokenConstraints,
    *,
    max_tokens: int,
    seed: int,
    prompt_logprobs: int | None,
) -> SamplingParams:
    """`defaults` are the checkpoint's, for parameters that the body leaves out."""

    def pick(name: str, neutral: Any) -> Any:
        given = getattr(body, name)
        value = defaults.get(name) if given is None else given
        return neutral if value is None else type(neutral)(value)

    params = {name: pick(name, neutral) for name, neutral in _NEUTRAL.items()}
    return SamplingParams(
        **params
        | {
            "max_tokens": max_tokens,
            "min_tokens": min(body.min_tokens, max_tokens),
            "top_k": max(params["top_k"], 0),
            "seed": seed & _SEED_MASK,
            "stop_token_ids": token_constraints.stop_token_ids,
            "logit_bias": token_constraints.logit_bias,
            "allowed_token_ids": token_constraints.allowed_token_ids,
            "bad_words": token_constraints.bad_words,
            "logprobs": body.num_logprobs,
            "logprob_token_ids": tuple(body.logprob_token_ids or ()),
            "prompt_logprobs": prompt_logprobs,
        }
    )
