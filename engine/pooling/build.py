"""Builds a core that is ready to pool from a plan: model, weights, runner, batcher. Imports torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from engine.config import EngineConfig
from engine.errors import CheckpointError
from engine.execution.device import resolve_device, resolve_dtype, translated_out_of_memory
from engine.execution.threads import num_compute_threads
from engine.models.architecture import DecoderArchitecture, EncoderArchitecture
from engine.models.encoder_layers import EncoderModel
from engine.models.layers.head import Head
from engine.models.pooled_decoder import PooledDecoder, decoder_tensor_name
from engine.models.quantised.checkpoint import open_checkpoint
from engine.models.split_tensors import SplitTensors
from engine.models.tensor_source import TensorSource
from engine.models.transformers_backend.choice import is_of_transformers
from engine.models.weights import Checkpoint, load_weights
from engine.pooling.batcher import Batcher
from engine.pooling.classifier import Classifier, FromTokens
from engine.pooling.plan import PoolingPlan
from engine.pooling.runner import (
    PooledDecoderRunner,
    PooledEncoderRunner,
    Pooler,
    PoolingModelRunner,
    Pools,
    Projection,
)
from engine.pooling.types import PoolingRequest, PoolingRunner
from engine.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PoolingCore:
    """The objects that the engine's thread works with."""

    runner: PoolingRunner
    batcher: Batcher


def build_pooling_core(
    config: EngineConfig, plan: PoolingPlan, tokenizer: Callable[[], Tokenizer]
) -> PoolingCore:
    """Call it in the thread that will run the batches; `tokenizer` is called only if it is needed.

    Raises CheckpointError, UnsupportedModel, ConfigError, OutOfMemory.
    """
    device = resolve_device(config.device)
    if device.type == "cpu":
        torch.set_num_threads(num_compute_threads(config.num_threads))
    started = time.perf_counter()
    with translated_out_of_memory(), torch.inference_mode():
        runner = PoolingModelRunner(partial(_load, config, plan, device, tokenizer), plan, device)
        log.info("Loaded weights in %.2f s.", time.perf_counter() - started)
        warm_up = PoolingRequest(request_id="warm-up", token_ids=[0] * 8, arrival_time=0.0)
        runner.run([warm_up])
    log.info("Pooling runner: %s, %s pooling, up to %d tokens.", plan.task, plan.pooling, plan.max_model_len)
    batcher = Batcher(max_tokens=config.max_num_batched_tokens, max_requests=config.max_num_seqs)
    return PoolingCore(runner, batcher)


def _load(
    config: EngineConfig, plan: PoolingPlan, device: torch.device, tokenizer: Callable[[], Tokenizer]
) -> Pooler:
    pools = _load_model(config, plan, device, tokenizer)
    return Pooler(pools, _load_projections(config, plan, device))


def _load_model(
    config: EngineConfig, plan: PoolingPlan, device: torch.device, tokenizer: Callable[[], Tokenizer]
) -> Pools:
    architecture = plan.architecture
    if isinstance(architecture, EncoderArchitecture):
        return PooledEncoderRunner(_load_encoder(config, plan, architecture, device))
    return PooledDecoderRunner(
        _load_decoder(config, plan, architecture, device, tokenizer),
        max_tokens=max(config.max_num_batched_tokens, plan.max_model_len),
        max_sequences=config.max_num_seqs,
        block_size=1 if plan.looks_both_ways else config.block_size,
        looks_both_ways=plan.looks_both_ways,
    )


def _load_encoder(
    config: EngineConfig, plan: PoolingPlan, architecture: EncoderArchitecture, device: torch.device
) -> EncoderModel:
    encoder_config = architecture.read_config(config.model, config.hf_overrides)
    saved_as = encoder_config.dtype
    if saved_as == "float16" and device.type == "cpu":
        saved_as = "float32"  # small models: better exact than fast
    model: EncoderModel = architecture.load_class()(
        encoder_config,
        num_labels=None if plan.classifier is None else plan.classifier.num_labels,
        dtype=resolve_dtype(config.dtype, saved_as, device),
        device=device,
    )
    if plan.classifier is not None and plan.classifier.from_tokens is not None:
        raise CheckpointError("classifier_from_token is for decoders: an encoder has its own classifier.")
    rename = encoder_config.family.tensor_name
    with open_checkpoint(config.model, config.hf_overrides, rename=rename) as checkpoint:
        load_weights(model, SplitTensors(checkpoint))
    return model


def _load_decoder(
    config: EngineConfig,
    plan: PoolingPlan,
    architecture: DecoderArchitecture,
    device: torch.device,
    tokenizer: Callable[[], Tokenizer],
) -> PooledDecoder:
    model_config = architecture.read_config(config.model, config.hf_overrides)
    dtype = resolve_dtype(config.dtype, model_config.dtype, device)
    is_native = not is_of_transformers(architecture)
    model_config = replace(model_config, max_model_len=plan.max_model_len)
    rename = decoder_tensor_name if is_native else None
    with open_checkpoint(config.model, config.hf_overrides, rename=rename) as checkpoint:
        score = None
        if plan.classifier is not None:
            score = Head(
                model_config.hidden_size,
                plan.classifier.num_labels,
                bias="score.bias" in checkpoint.names,
                is_stored=plan.classifier.from_tokens is None,
            )
        model_class = architecture.load_class()
        model: PooledDecoder
        if is_native:
            model = PooledDecoder(model_class, model_config, score=score, dtype=dtype, device=device)
            load_weights(model, checkpoint)
        else:
            model = model_class(model_config, checkpoint, score=score, dtype=dtype, device=device)
        if score is not None and plan.classifier is not None and plan.classifier.from_tokens is not None:
            score.load("weight", [_derive_score(plan.classifier, checkpoint, tokenizer()).to(device)])
    return model


def _derive_score(classifier: Classifier, checkpoint: TensorSource, tokenizer: Tokenizer) -> torch.Tensor:
    """A classifier's weight from rows of the language head: float32 [num_labels, hidden]."""
    heads = ("lm_head.weight", "model.embed_tokens.weight", "embed_tokens.weight")
    head = next((name for name in heads if name in checkpoint.names), None)
    if head is None:
        raise CheckpointError(f"classifier_from_token: the checkpoint has none of {', '.join(heads)}.")
    token_ids = [tokenizer.fast.token_to_id(token) for token in classifier.tokens]
    if None in token_ids:
        unknown = classifier.tokens[token_ids.index(None)]
        raise CheckpointError(f"classifier_from_token: {unknown!r} is not a token of this model.")
    rows = checkpoint.tensor(head)[token_ids].float()
    return rows[1:] - rows[:1] if classifier.from_tokens is FromTokens.TWO_WAY_SOFTMAX else rows


def _load_projections(config: EngineConfig, plan: PoolingPlan, device: torch.device) -> list[Projection]:
    projections = []
    for module in plan.dense:
        head = Head(module.in_features, module.out_features, bias=module.has_bias)
        with Checkpoint(config.model / module.folder) as checkpoint:
            for name in head.part_shapes():
                stored = f"linear.{name}"
                if stored not in checkpoint.names:
                    raise CheckpointError(f"{config.model / module.folder} lacks {stored}.")
                head.load(name, [checkpoint.tensor(stored).to(device)])
        projections.append(Projection(head, module.has_tanh))
    return projections
