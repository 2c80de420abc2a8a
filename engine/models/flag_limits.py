"""What a model's kind and configuration allow of the engine's flags. Knows nothing of torch."""

from __future__ import annotations

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.models.architecture import DecoderArchitecture
from engine.models.config import ModelConfig
from engine.models.transformers_backend.choice import is_of_transformers


def check_takes_adapters(config: EngineConfig, architecture: DecoderArchitecture) -> None:
    """Raises ConfigError for --enable-lora with a model that it can't be used with."""
    if not config.enable_lora:
        return
    if is_of_transformers(architecture):
        raise ConfigError(
            f"--enable-lora: transformers' own code computes {architecture.name}, and takes no LoRA "
            "adapters: merge the adapter into the model, or run it on vLLM (`engine: vllm`)."
        )


def check_length(config: EngineConfig, model: ModelConfig) -> None:
    """Raises ConfigError for a --max-model-len beyond what the model can run."""
    if config.max_model_len is not None and config.max_model_len > model.max_position_embeddings:
        raise ConfigError(
            f"--max-model-len {config.max_model_len} exceeds the model's limit: "
            f"max_position_embeddings is {model.max_position_embeddings}."
        )
