"""Builds a core that is ready to step from a configuration: model, weights, KV cache, runner, scheduler."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from engine.checkpoint.model_path import resolve_model
from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.execution.cache_division import CacheDivision
from engine.execution.device import resolve_device, resolve_dtype, translated_out_of_memory
from engine.execution.graphs import Record, recorder_for
from engine.execution.memory import CacheSize, MemoryBudget, cpu_budget, cuda_budget, size_cache
from engine.execution.parallel.division import build_share
from engine.execution.parallel.leading_runner import LeadingRunner
from engine.execution.parallel.messages import MeasureBudget
from engine.execution.parallel.processes import Ranks
from engine.execution.parallel.start import start_ranks
from engine.execution.runner import ModelRunner
from engine.execution.state_memory import count_state_slots, tell_of_states
from engine.execution.threads import num_compute_threads
from engine.models.architecture import DecoderArchitecture
from engine.models.attention.paged import PagedKVCache
from engine.models.config import ModelConfig
from engine.models.decoder import CausalLM
from engine.models.decoder_config import DecoderConfig
from engine.models.flag_limits import check_length, check_takes_adapters
from engine.models.layers.division import DeviceGroup
from engine.models.lora.adapters import Adapters
from engine.models.quantised.checkpoint import open_checkpoint
from engine.models.quantised.gguf_directory import as_directory
from engine.models.state.spec import bytes_per_slot
from engine.models.transformers_backend.choice import choose_implementation, is_of_transformers
from engine.models.weights import has_own_head, load_weights

log = logging.getLogger(__name__)

# A prompt of 1200 tokens beside four streams, Qwen3-0.6B in bfloat16 on two cores: with 256 no step is longer
# than 0.53 s and the prompt takes 2.2 s; in one step it takes 1.9 s, and the streams stall meanwhile.
CPU_PREFILL_BESIDE_DECODES = 256


def build_core(config: EngineConfig, *, eos_token_ids: Sequence[int] | None = None) -> EngineCore:
    """Load a model and build an engine core around it. Call it in the thread that will run the steps.

    `eos_token_ids`: the main end-of-sequence token first; default: those that the checkpoint names.
    Raises ModelNotFound, CheckpointError, UnsupportedModel, ConfigError, OutOfMemory.
    """
    config = replace(config, model=as_directory(resolve_model(config.model), load_format=config.load_format))
    architecture = choose_implementation(config.model, config.hf_overrides, config.model_impl)
    model_config = architecture.read_config(config.model, config.hf_overrides)
    check_takes_adapters(config, architecture)
    check_length(config, model_config)
    if not is_of_transformers(architecture):
        model_config = _with_own_head(config, model_config)
    model_config = replace(model_config, max_model_len=config.max_model_len)
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, model_config.dtype, device)
    if device.type == "cpu":
        torch.set_num_threads(num_compute_threads(config.num_threads))
    _tell_what_computes(architecture, model_config, dtype, device)
    if config.max_prefill_beside_decodes is None and device.type == "cpu":
        config = replace(config, max_prefill_beside_decodes=CPU_PREFILL_BESIDE_DECODES)
    adapters = Adapters(max_rank=config.max_lora_rank) if config.enable_lora else None
    ranks = None
    if config.tensor_parallel_size > 1:
        ranks = start_ranks(config, model_config, dtype=dtype, device=device)
    load = partial(
        load_model,
        config,
        architecture,
        model_config,
        dtype=dtype,
        device=device,
        group=None if ranks is None else ranks.group,
        adapters=adapters,
    )
    eos_token_ids = model_config.eos_token_ids if eos_token_ids is None else eos_token_ids
    make_runner = partial(_make_runner, eos_token_ids=eos_token_ids, ranks=ranks)
    with _closed_on_error(ranks), translated_out_of_memory(), torch.inference_mode():
        model = load()
        if ranks is not None:
            ranks.connect()
        size = _size_cache(config, model, make_runner, ranks)
        tell_of_states(config, model.state_specs, size.num_state_slots)
        cache = build_cache(config, model, size.num_blocks, size.window_blocks, size.num_state_slots)
        runner = make_runner(model, cache, load=load, record=recorder_for(cache), adapters=adapters)
        _warm_up(runner, config, size)
    return EngineCore.from_config(
        config,
        runner,
        max_model_len=size.max_model_len,
        eos_token_ids=eos_token_ids,
        device_watch=ranks,
    )


def _tell_what_computes(
    architecture: DecoderArchitecture, model: ModelConfig, dtype: torch.dtype, device: torch.device
) -> None:
    name, found = architecture.name, model.computed_as  # which transformers finds by the model_type
    log.info(
        "%s computes %s in %s on %s.",
        "Transformers' own code" if is_of_transformers(architecture) else "This engine's class",
        name if found == name else f"{name} as {found}",
        str(dtype).removeprefix("torch."),
        f"the CPU (threads: {torch.get_num_threads()})" if device.type == "cpu" else device,
    )


def _warm_up(runner: ModelRunner, config: EngineConfig, size: CacheSize) -> None:
    with _timed("Warmed up"):
        runner.warm_up(min(16, size.max_model_len - 1))
        runner.record_graphs(config.max_num_seqs)
    for window, num_blocks in size.window_blocks.items():
        log.info("Layers with a window of %d tokens have %d blocks of their own.", window, num_blocks)
    log.info(
        "KV cache: %d blocks of %d tokens; longest sequence %d tokens.",
        size.num_blocks,
        config.block_size,
        size.max_model_len,
    )


def _make_runner(
    model: CausalLM,
    cache: PagedKVCache,
    *,
    eos_token_ids: Sequence[int],
    ranks: Ranks | None,
    load: Callable[[], CausalLM] | None = None,
    record: Callable[[], Record] | None = None,
    adapters: Adapters | None = None,
) -> ModelRunner:
    """Several ranks record no graphs."""
    if ranks is not None:
        return LeadingRunner(model, cache, ranks, eos_token_ids=eos_token_ids, load=load, adapters=adapters)
    return ModelRunner(model, cache, eos_token_ids=eos_token_ids, load=load, record=record, adapters=adapters)


@contextmanager
def _closed_on_error(ranks: Ranks | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if ranks is not None:
            ranks.close()
        raise


def _with_own_head(config: EngineConfig, model_config: DecoderConfig) -> DecoderConfig:
    """Uses the checkpoint's own head if it has one, whatever config.json says, like transformers."""
    if not model_config.tie_word_embeddings:
        return model_config
    with open_checkpoint(config.model, config.hf_overrides) as checkpoint:
        if not has_own_head(checkpoint):
            return model_config
    log.info(
        "config.json says tie_word_embeddings, but the checkpoint has an lm_head.weight that differs from "
        "the embedding: it is used."
    )
    return replace(model_config, tie_word_embeddings=False)


def load_model(
    config: EngineConfig,
    architecture: DecoderArchitecture,
    model_config: DecoderConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    group: DeviceGroup | None = None,
    adapters: Adapters | None = None,
) -> CausalLM:
    """The model in `config.model`, which must be a directory, with its weights; in a group, its share."""
    model_class = architecture.load_class()
    model: CausalLM
    with _timed("Loaded weights"), open_checkpoint(config.model, config.hf_overrides) as checkpoint:
        if is_of_transformers(architecture):
            model = model_class(model_config, checkpoint, dtype=dtype, device=device, group=group)
        else:
            make_model = partial(model_class, dtype=dtype, device=device)
            model = (
                make_model(model_config) if group is None else build_share(make_model, model_config, group)
            )
            load_weights(model, checkpoint)
    if adapters is not None:
        adapters.attach(model)
    return model


def build_cache(
    config: EngineConfig,
    model: CausalLM,
    num_blocks: int,
    window_blocks: Mapping[int, int] | None = None,
    num_state_slots: int = 0,
) -> PagedKVCache:
    return PagedKVCache(
        model.attention_specs,
        num_blocks=num_blocks,
        window_blocks=window_blocks or {},
        block_size=config.block_size,
        dtype=model.dtype,
        device=model.device,
        state_specs=model.state_specs,
        num_state_slots=num_state_slots,
    )


def _size_cache(
    config: EngineConfig, model: CausalLM, make_runner: Callable[..., ModelRunner], ranks: Ranks | None
) -> CacheSize:
    num_sharing = 1  # ranks that share the budget
    if model.device.type == "cuda" and config.num_gpu_blocks_override is None:
        num_tokens = min(config.max_num_batched_tokens, model.config.max_position_embeddings)
        with _timed("Measured the memory of a full step"):
            num_slots = 2 if model.state_specs else 0
            cache = build_cache(config, model, -(-num_tokens // config.block_size), num_state_slots=num_slots)
            make_runner(model, cache).warm_up(num_tokens)
            del cache
        budget = cuda_budget(model.device, config.gpu_memory_utilization)
        if ranks is not None:
            budgets = [budget, *ranks.call(MeasureBudget())]
            budget = min(budgets, key=lambda one: one.limit_bytes)
    elif model.device.type == "cuda":  # the number of blocks is given
        budget = MemoryBudget(default_bytes=0, limit_bytes=0)
    else:
        budget = cpu_budget()
        num_sharing = config.tensor_parallel_size
    division = CacheDivision.of(
        model.attention_specs,
        num_sharing * model.dtype.itemsize,
        config,
        config.max_model_len or model.config.max_position_embeddings,
        max_tokens_per_step=ModelRunner.max_tokens_per_step,
    )
    longest_bytes = division.undivided.bytes_of(division.longest) if config.max_model_len else 0
    num_slots = count_state_slots(config, model.state_specs, budget, longest_bytes=longest_bytes)
    size = size_cache(
        config,
        budget,
        division=replace(division, state_bytes=num_slots * bytes_per_slot(model.state_specs)),
        model_limit=model.config.max_position_embeddings,
    )
    return replace(size, num_state_slots=num_slots)


@contextmanager
def _timed(what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    log.info("%s in %.2f s.", what, time.perf_counter() - started)
