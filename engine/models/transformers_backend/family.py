"""Which class of transformers runs a checkpoint, and with which configuration. Reads no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from engine.checkpoint.eos_tokens import declared_eos_tokens
from engine.checkpoint.raw_config import architecture_of, read_raw_config
from engine.errors import CheckpointError, UnsupportedModel
from engine.models.config import ModelConfig

_FOREIGN = ("quantization_config", "compression_config", "auto_map")  # not for transformers to act on
_SHOWN = 300  # characters of an error that isn't ours
_HEADS = ("ForCausalLM", "LMHeadModel")
_UNLIMITED = 1 << 17
_POOLING = ("ForSequenceClassification", "Model")
_DECODERS = (*_HEADS, *_POOLING)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersConfig(ModelConfig):
    """And what transformers builds the model from. How it attends is found out by running it."""

    model_class: Any  # a class of transformers: its functions have no types
    settings: PreTrainedConfig
    is_part: bool  # the text part of a model that also sees or hears

    @property
    def computed_as(self) -> str:
        return str(self.model_class.__name__)


def read_transformers_config(
    directory: Path, overrides: Mapping[str, Any] | None = None
) -> TransformersConfig:
    """Raises CheckpointError, and UnsupportedModel if transformers can't run the model by our rules."""
    raw = read_raw_config(directory, overrides)
    architecture = architecture_of(directory, raw)
    whole = _read_settings(architecture, raw)
    settings = _text_settings(whole)
    is_part = settings.model_type != whole.model_type or isinstance(raw.get("text_config"), dict)
    model_class = _find_class(architecture, settings, is_part=is_part)
    _check_class(architecture, model_class)
    return TransformersConfig(
        architecture=architecture,
        model_class=model_class,
        settings=settings,
        is_part=is_part,
        attention_specs=(),
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        max_position_embeddings=_max_positions(settings, model_class),
        tie_word_embeddings=bool(getattr(settings, "tie_word_embeddings", False)),
        dtype=raw.get("dtype") or raw.get("torch_dtype"),
        eos_token_ids=declared_eos_tokens(directory, raw),
    )


def _read_settings(architecture: str, raw: Mapping[str, Any]) -> PreTrainedConfig:
    kind = raw.get("model_type")
    if not isinstance(kind, str):
        raise CheckpointError(
            f"config.json has no model_type, by which the code for {architecture} is found."
        )
    if kind not in CONFIG_MAPPING:
        if raw.get("auto_map"):
            raise UnsupportedModel(
                f"{architecture} needs Python code from its checkpoint (auto_map), which is never run here."
            )
        raise UnsupportedModel(
            f"Architecture {architecture!r} (model_type {kind!r}) isn't known to transformers "
            f"{transformers.__version__}, which is installed: a newer version may know it."
        )
    if (raw.get("text_config") or {}).get("model_type") == kind:
        raw = {key: value for key, value in raw.items() if not key.endswith("_config")}
    fields = {key: value for key, value in raw.items() if key not in _FOREIGN}
    try:
        fields = PreTrainedConfig._decode_special_floats(fields)
        settings: PreTrainedConfig = CONFIG_MAPPING[kind].from_dict(fields)
    except Exception as error:  # each family checks its configuration in its own way
        raise CheckpointError(f"config.json doesn't suit model_type {kind!r}: {reason_of(error)}") from error
    return settings


def reason_of(error: Exception) -> str:
    """An error that isn't ours, in one line. That of a KeyError is the key alone, which explains nothing."""
    text = " ".join(str(error).split())[:_SHOWN]
    return (
        f"{type(error).__name__}: {text}"
        if text and isinstance(error, KeyError)
        else text or type(error).__name__
    )


def _text_settings(settings: PreTrainedConfig) -> PreTrainedConfig:
    """The text part of a model that also sees or hears, if transformers has a model for it alone."""
    text: object = settings.get_text_config(decoder=True)
    if not isinstance(text, PreTrainedConfig):  # a field that this family knows nothing of
        return settings
    return text if text.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else settings


def _find_class(architecture: str, settings: PreTrainedConfig, *, is_part: bool) -> type[PreTrainedModel]:
    """`is_part`: see TransformersConfig."""
    name = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(settings.model_type, ""))
    found = getattr(transformers, name, None) if name.endswith(_HEADS) else None
    if found is None or not (is_part or architecture.endswith(_DECODERS)):
        raise _no_decoder(architecture)
    if architecture != name and architecture.endswith("ForCausalLM") and hasattr(transformers, architecture):
        raise UnsupportedModel(
            f"config.json names the architecture {architecture!r}, but its model_type "
            f"{settings.model_type!r} is that of {name}."
        )
    model_class: type[PreTrainedModel] = found
    return model_class


def _no_decoder(architecture: str) -> UnsupportedModel:
    if architecture.endswith(_POOLING) and not architecture.endswith(_HEADS):
        return UnsupportedModel(
            f"Architecture {architecture!r} is neither one of the encoders that docs/models.md lists nor, in "
            f"transformers {transformers.__version__}, a decoder of text."
        )
    return UnsupportedModel(
        f"Architecture {architecture!r} has no part in transformers {transformers.__version__} that "
        "generates text from text alone."
    )


def _check_class(architecture: str, model_class: type[PreTrainedModel]) -> None:
    is_stateful = getattr(model_class, "_is_stateful", False)
    if is_stateful and not {"past_key_values", "cache_params"} & set(
        signature(model_class.forward).parameters
    ):
        raise UnsupportedModel(
            f"{architecture} carries a state from token to token in a form of its own, which the engine's "
            "state cache can't hold."
        )
    # Those that carry a state don't say that they support the interface, as they need more; most use it.
    if not is_stateful and not getattr(model_class, "_supports_attention_backend", False):
        raise UnsupportedModel(
            f"{architecture} can't use the engine's KV cache: transformers {transformers.__version__} "
            f"computes its attention in code of its own ({model_class.__name__} doesn't support the "
            "attention interface)."
        )


def _max_positions(settings: PreTrainedConfig, model_class: type[PreTrainedModel]) -> int:
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        value = getattr(settings, name, None)
        if isinstance(value, int) and value > 0:
            return value
    if getattr(model_class, "_is_stateful", False):
        return _UNLIMITED  # Mamba knows no positions
    raise CheckpointError("config.json doesn't say how long a context may be: max_position_embeddings.")
