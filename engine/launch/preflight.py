"""Whether the engine can run a checkpoint, as far as a quick check without torch can decide."""

from __future__ import annotations

from pathlib import Path

from engine.checkpoint.adapter_config import read_adapter
from engine.checkpoint.adapter_shapes import check_shapes
from engine.checkpoint.layout import (
    check_layout,
    check_tokenizer,
    check_whole,
    unpacked_gguf,
    weight_files,
)
from engine.checkpoint.quantisation import check_quantisation_flag
from engine.checkpoint.raw_config import read_raw_config
from engine.config import EngineConfig, ServerConfig
from engine.core.adapter import check_is_free
from engine.errors import CheckpointError, ConfigError, InvalidRequest
from engine.models.divisible import check_divisible
from engine.models.flag_limits import check_length, check_takes_adapters
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
    check_takes_adapters(config, architecture)
    model = architecture.read_config(directory, config.hf_overrides)
    check_divisible(model, config.tensor_parallel_size)
    check_length(config, model)


def check_adapters(config: EngineConfig, server: ServerConfig) -> None:
    """Check the adapters of --lora-modules, which the server loads later, in its words.

    Raises ConfigError that names the one at fault.
    """
    if not server.lora_modules:
        return
    architecture = choose_implementation(config.model, config.hf_overrides, config.model_impl)
    model = architecture.read_config(config.model, config.hf_overrides)
    num_layers = len(model.attention_specs)
    loaded: set[str] = set()
    for given in server.lora_modules:
        try:
            check_is_free(given.name, taken=server.served_model_names, loaded=loaded)
            adapter = read_adapter(given.name, given.path, max_rank=config.max_lora_rank)
            check_shapes(given.path, adapter, hidden_size=model.hidden_size, num_layers=num_layers)
        except (InvalidRequest, CheckpointError) as error:
            raise ConfigError(f"--lora-modules {given.name}: {error.message}") from error
        loaded.add(given.name)


def check_checkpoint(config: EngineConfig, tokenizer: Path | None = None) -> None:
    """`check_config`, and whether all files exist. `tokenizer`: its directory, None = that of the weights.

    Raises what `check_config` raises.
    """
    check_config(config)
    if not unpacked_gguf(config.model):  # whose reader has checked it
        for path in weight_files(config.model):
            check_whole(path)
    check_tokenizer(tokenizer or config.model)
