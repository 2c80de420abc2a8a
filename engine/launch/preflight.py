"""Whether the engine can run a checkpoint, as far as a quick check without torch can decide."""

from __future__ import annotations

from pathlib import Path

from engine.checkpoint.layout import (
    check_layout,
    check_tokenizer,
    check_whole,
    unpacked_gguf,
    weight_files,
)
from engine.checkpoint.quantisation import check_quantisation_flag
from engine.checkpoint.raw_config import read_raw_config
from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.models.divisible import check_divisible
from engine.models.transformers_backend.choice import choose_implementation
from engine.pooling.plan import RunnerKind, choose_runner, read_pooling_plan


def check_config(config: EngineConfig) -> None:
    """Check the JSON files in `config.model`, which must be a directory. Needs no weights.

    Raises CheckpointError, UnsupportedModel, and ConfigError for flags that don't fit it.
    """
    directory = config.model
    check_layout(directory)
    raw = read_raw_config(directory, config.hf_overrides)
    check_quantisation_flag(config.quantization, directory, raw)
    if choose_runner(config) is RunnerKind.POOLING:
        if config.tensor_parallel_size > 1:
            raise ConfigError(
                f"--tensor-parallel-size {config.tensor_parallel_size} is for models that generate text: the "
                "pooling runner uses one device. Leave the flag out."
            )
        if config.enable_lora:
            raise ConfigError(
                "--enable-lora is for models that generate text: the pooling runner takes no LoRA adapters. "
                "Merge the adapter into the model, or leave the flag out."
            )
        read_pooling_plan(config).architecture.read_config(directory, config.hf_overrides)
        return
    architecture = choose_implementation(directory, config.hf_overrides, config.model_impl)
    check_divisible(architecture.read_config(directory, config.hf_overrides), config.tensor_parallel_size)


def check_checkpoint(config: EngineConfig, tokenizer: Path | None = None) -> None:
    """`check_config`, and whether all files exist. `tokenizer`: its directory, None = that of the weights.

    Raises what `check_config` raises.
    """
    check_config(config)
    if not unpacked_gguf(config.model):  # whose reader has checked it
        for path in weight_files(config.model):
            check_whole(path)
    check_tokenizer(tokenizer or config.model)
