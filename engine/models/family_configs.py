"""How each family of decoders reads its config.json: what differs from Llama's. Knows nothing of torch."""

from __future__ import annotations

from engine.errors import UnsupportedModel
from engine.models.config import ConfigFile, ConfigReader
from engine.models.decoder_config import SLIDING, DecoderConfig, read_decoder, read_layer_types


def read_llama(file: ConfigFile) -> DecoderConfig:
    return read_decoder(file, _without_windows(read_layer_types(file.reader, lambda layer: False)))


def read_qwen3(file: ConfigFile) -> DecoderConfig:
    return read_decoder(file, _without_windows(_qwen_layer_types(file.reader)))


def _qwen_layer_types(reader: ConfigReader) -> tuple[str, ...]:
    """Layers from max_window_layers on have a window, if use_sliding_window says so."""
    slides = reader.boolean("use_sliding_window", False) and reader.has("sliding_window")
    first = reader.integer("max_window_layers", 28, minimum=0)
    return read_layer_types(reader, lambda layer: slides and layer >= first)


def _without_windows(layer_types: tuple[str, ...]) -> tuple[str, ...]:
    if SLIDING in layer_types:
        raise UnsupportedModel("Sliding-window attention isn't supported; set use_sliding_window to false.")
    return layer_types
