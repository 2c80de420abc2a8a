"""A checkpoint's labels: how many there are, how logits become scores, where the weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from engine.errors import CheckpointError, UnsupportedModel


class Activation(StrEnum):
    """The last operation on a pooled vector or on logits."""

    NORMALIZE = "normalize"
    IDENTITY = "identity"
    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"
    TANH = "tanh"


class FromTokens(StrEnum):
    """How the language head's rows of `classifier_from_token` become a classifier; vLLM's names."""

    TWO_WAY_SOFTMAX = "from_2_way_softmax"  # the second token's row less the first's: one label
    NO_POST_PROCESSING = "no_post_processing"  # a label per token


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    num_labels: int
    activation: Activation
    logit_mean: float = 0.0  # scores are activation((logit - mean) / sigma)
    logit_sigma: float = 1.0
    from_tokens: FromTokens | None = None  # None: the checkpoint has the classifier's weights
    tokens: tuple[str, ...] = ()
    joins_texts: bool = False  # pairs are one text, not two with a separator between them
    is_qwen3_reranker: bool = False  # needs the prompt that it was trained with


def read_classifier(raw: Mapping[str, Any], *, mean: float | None, sigma: float | None) -> Classifier:
    """From config.json as overridden. Raises CheckpointError and UnsupportedModel."""
    from_tokens, tokens = _from_tokens(raw)
    num_labels = _num_labels(raw)
    if from_tokens is not None:
        num_labels = 1 if from_tokens is FromTokens.TWO_WAY_SOFTMAX else len(tokens)
    return Classifier(
        num_labels=num_labels,
        activation=_activation(raw, num_labels),
        logit_mean=0.0 if mean is None else mean,
        logit_sigma=1.0 if sigma is None else sigma,
        from_tokens=from_tokens,
        tokens=tokens,
        joins_texts=not raw.get("use_sep_token", from_tokens is None),
        is_qwen3_reranker=bool(raw.get("is_original_qwen3_reranker")),
    )


def _from_tokens(raw: Mapping[str, Any]) -> tuple[FromTokens | None, tuple[str, ...]]:
    tokens = raw.get("classifier_from_token")
    method = raw.get("method")
    if method is None and raw.get("is_original_qwen3_reranker"):
        method = FromTokens.TWO_WAY_SOFTMAX
    if method is None and tokens is None:
        return None, ()
    if method not in tuple(FromTokens):
        raise UnsupportedModel(f"method {method!r} isn't one of {', '.join(FromTokens)}.")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens) or not tokens:
        raise CheckpointError(f"classifier_from_token is {tokens!r}; it must be a list of tokens.")
    if method == FromTokens.TWO_WAY_SOFTMAX and len(tokens) != 2:
        raise CheckpointError(f"{method} needs two tokens in classifier_from_token, not {len(tokens)}.")
    return FromTokens(method), tuple(tokens)


def _num_labels(raw: Mapping[str, Any]) -> int:
    """As in transformers: two by default."""
    labels = raw.get("id2label")
    value = raw.get("num_labels", len(labels) if isinstance(labels, dict) and labels else 2)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"config.json: num_labels is {value!r}; it must be a positive integer.")
    return value


def _activation(raw: Mapping[str, Any], num_labels: int) -> Activation:
    usual = Activation.SIGMOID if num_labels == 1 else Activation.SOFTMAX
    match raw.get("problem_type"):
        case "regression":
            return Activation.IDENTITY
        case "single_label_classification":
            return usual
        case "multi_label_classification":
            return Activation.SIGMOID
    section = raw.get("sentence_transformers")
    named = section.get("activation_fn") if isinstance(section, dict) else None
    named = named or raw.get("sbert_ce_default_activation_function")
    if named is None:
        return usual
    by_name = {
        "Identity": Activation.IDENTITY,
        "Sigmoid": usual,
        "Softmax": usual,
        "Tanh": Activation.TANH,
    }
    name = str(named).rpartition(".")[2]
    if name not in by_name:
        raise UnsupportedModel(f"Activation {named!r} isn't supported; {', '.join(by_name)} are.")
    return by_name[name]
