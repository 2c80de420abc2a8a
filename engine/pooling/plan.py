"""How a model pools, from its checkpoint's files and the flags: runner, task, pooling, activation, limits.

Reads JSON only; knows nothing of torch, so that the server can use it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from engine.checkpoint.raw_config import architecture_of, read_raw_config
from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.models.architecture import Architecture, DecoderArchitecture
from engine.models.config import ModelConfig
from engine.models.encoder_config import EncoderConfig
from engine.models.pooling_type import PoolingType
from engine.models.transformers_backend.choice import choose_pooling_implementation, only_pools
from engine.pooling.classifier import Activation, Classifier, read_classifier
from engine.pooling.sentence_transformers import (
    DenseModule,
    SentenceTransformer,
    read_sentence_transformer,
)


class RunnerKind(StrEnum):
    GENERATE = "generate"
    POOLING = "pooling"


class Task(StrEnum):
    EMBED = "embed"
    CLASSIFY = "classify"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingPlan:
    """How this model pools; built once, read by the engine's thread and by the server."""

    architecture: Architecture
    task: Task
    pooling: PoolingType
    use_activation: bool  # the default for requests
    embedding_size: int
    max_model_len: int  # tokens of one input
    looks_both_ways: bool = False  # a decoder whose tokens see those after them, too
    classifier: Classifier | None = None  # with Task.CLASSIFY
    dense: tuple[DenseModule, ...] = ()  # sentence-transformers' projections after pooling
    is_matryoshka: bool = False
    matryoshka_dimensions: tuple[int, ...] = ()  # those it was trained for; empty = any
    prompts: Mapping[str, str] = field(default_factory=dict)  # input type → prefix of texts

    @property
    def activation(self) -> Activation:
        return Activation.NORMALIZE if self.classifier is None else self.classifier.activation


def choose_runner(config: EngineConfig) -> RunnerKind:
    """`--runner`, or the checkpoint's purpose. `config.model` must be a directory.

    Raises CheckpointError, and ConfigError for flags that contradict each other or the checkpoint.
    """
    name = architecture_of(config.model, read_raw_config(config.model, config.hf_overrides))
    is_headless = only_pools(name)
    if config.runner == RunnerKind.GENERATE:
        if config.convert in tuple(Task):
            raise ConfigError(f"--convert {config.convert} needs --runner pooling, not generate.")
        if is_headless:
            raise ConfigError(f"{name} generates no text: it needs --runner pooling.")
        return RunnerKind.GENERATE
    if config.runner == RunnerKind.POOLING or config.convert in tuple(Task):
        return RunnerKind.POOLING
    # Some embedding models have a generating architecture: sentence-transformers' files identify them.
    pools = is_headless or read_sentence_transformer(config.model) is not None
    return RunnerKind.POOLING if pools else RunnerKind.GENERATE


def read_pooling_plan(config: EngineConfig) -> PoolingPlan:
    """Raises CheckpointError, UnsupportedModel and ConfigError."""
    raw = read_raw_config(config.model, config.hf_overrides)
    architecture = choose_pooling_implementation(config.model, config.hf_overrides, config.model_impl)
    model = architecture.read_config(config.model, config.hf_overrides)
    task = _task(config.convert, architecture)
    recipe = read_sentence_transformer(config.model)
    pooler = _PoolerConfig.read(config.pooler_config, task)
    classifier = None
    if task is Task.CLASSIFY:
        classifier = read_classifier(raw, mean=pooler.logit_mean, sigma=pooler.logit_sigma)
    dense = recipe.dense if recipe is not None and task is Task.EMBED else ()
    dimensions = tuple(raw.get("matryoshka_dimensions") or ())
    return PoolingPlan(
        architecture=architecture,
        task=task,
        pooling=_pooling(pooler, recipe, architecture, model, task),
        use_activation=_use_activation(pooler, recipe, task),
        embedding_size=dense[-1].out_features if dense else model.hidden_size,
        max_model_len=_max_model_len(config, recipe, model),
        looks_both_ways=_looks_both_ways(raw, architecture),
        classifier=classifier,
        dense=dense,
        is_matryoshka=bool(dimensions or raw.get("is_matryoshka")),
        matryoshka_dimensions=dimensions,
        prompts=_prompts(raw, recipe),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _PoolerConfig:
    """--pooler-config, checked."""

    pooling: PoolingType | None = None
    use_activation: bool | None = None
    logit_mean: float | None = None
    logit_sigma: float | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any], task: Task) -> _PoolerConfig:
        values = {key: value for key, value in given.items() if value is not None}
        known = {"task", "pooling_type", "seq_pooling_type", "use_activation", "logit_mean", "logit_sigma"}
        if unknown := sorted(values.keys() - known):
            raise ConfigError(
                f"--pooler-config: {unknown[0]!r} isn't supported; {', '.join(sorted(known))} are."
            )
        if values.get("task", task) != task:
            raise ConfigError(
                f"--pooler-config: task is {values['task']!r}, but this model's task is {str(task)!r}."
            )
        name = values.get("pooling_type", values.get("seq_pooling_type"))
        if name is not None and name not in tuple(PoolingType):
            raise ConfigError(f"--pooler-config: pooling {name!r} isn't one of {', '.join(PoolingType)}.")
        if not isinstance(values.get("use_activation", True), bool):
            raise ConfigError("--pooler-config: use_activation must be true or false.")
        return cls(
            pooling=None if name is None else PoolingType(name),
            use_activation=values.get("use_activation"),
            logit_mean=_number(values, "logit_mean"),
            logit_sigma=_number(values, "logit_sigma"),
        )


def _number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or (name == "logit_sigma" and value == 0)
    ):
        raise ConfigError(f"--pooler-config: {name} can't be {value!r}.")
    return float(value)


def _task(convert: str, architecture: Architecture) -> Task:
    if convert == "none" and architecture.generates:
        raise ConfigError(f"--convert none: {architecture.name} pools only as --convert embed or classify.")
    if convert == Task.EMBED and architecture.classifies:
        raise ConfigError(f"--convert embed: {architecture.name} classifies.")
    if convert in ("auto", "none"):
        return Task.CLASSIFY if architecture.classifies else Task.EMBED
    return Task(convert)


def _pooling(
    pooler: _PoolerConfig,
    recipe: SentenceTransformer | None,
    architecture: Architecture,
    model: ModelConfig | EncoderConfig,
    task: Task,
) -> PoolingType:
    if pooler.pooling is not None:
        return pooler.pooling
    if recipe is not None and task is Task.EMBED:
        return recipe.pooling_type()
    if isinstance(model, EncoderConfig):
        return model.classifier_pooling if task is Task.CLASSIFY else model.pooling
    return PoolingType.MEAN if architecture.looks_both_ways else PoolingType.LAST


def _use_activation(pooler: _PoolerConfig, recipe: SentenceTransformer | None, task: Task) -> bool:
    if pooler.use_activation is not None:
        return pooler.use_activation
    return recipe is None or task is not Task.EMBED or recipe.normalizes


def _max_model_len(
    config: EngineConfig, recipe: SentenceTransformer | None, model: ModelConfig | EncoderConfig
) -> int:
    """The requested length; or the model's own limit, which sentence-transformers' files may lower."""
    limit = model.max_tokens if isinstance(model, EncoderConfig) else model.max_position_embeddings
    if config.max_model_len is None:
        return min(limit, recipe.max_seq_length or limit) if recipe is not None else limit
    if config.max_model_len > limit:
        raise ConfigError(
            f"--max-model-len {config.max_model_len} exceeds the model's limit of {limit} tokens."
        )
    return config.max_model_len


def _looks_both_ways(raw: Mapping[str, Any], architecture: Architecture) -> bool:
    """Whether it is a decoder of which config.json, or the architecture itself, says so."""
    if not isinstance(architecture, DecoderArchitecture):
        return False
    marked = raw.get("is_causal") is False or raw.get("use_bidirectional_attention") in (True, "all")
    return marked or architecture.looks_both_ways


def _prompts(raw: Mapping[str, Any], recipe: SentenceTransformer | None) -> dict[str, str]:
    named = raw.get("task_instructions")
    named = named if isinstance(named, dict) else recipe.prompts if recipe is not None else {}
    return {name: text for name, text in named.items() if isinstance(text, str)}
