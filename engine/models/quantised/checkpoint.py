"""Opens a checkpoint of any kind as a source of plain weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.layout import check_unchanged, unpacked_gguf
from engine.checkpoint.mapped_files import forget_pages
from engine.checkpoint.quantisation import read_quantisation
from engine.checkpoint.raw_config import read_raw_config
from engine.models.quantised.formats import format_of
from engine.models.quantised.gguf_source import GGUFSource
from engine.models.quantised.source import DequantisedSource
from engine.models.renamed_tensors import RenamedTensors
from engine.models.tensor_source import TensorSource
from engine.models.weights import Checkpoint

log = logging.getLogger(__name__)


@contextmanager
def open_checkpoint(
    directory: Path, overrides: Mapping[str, Any] | None = None, *, rename: Callable[[str], str] | None = None
) -> Iterator[TensorSource]:
    """Quantised weights are dequantised as they are read; tensors remain valid afterwards.

    `overrides` are --hf-overrides; `rename` maps a stored name to the model's. Raises CheckpointError and
    UnsupportedModel.
    """
    with _opened(directory, overrides) as source:
        yield source if rename is None else RenamedTensors(source, rename)


@contextmanager
def _opened(directory: Path, overrides: Mapping[str, Any] | None) -> Iterator[TensorSource]:
    """By stored names."""
    if paths := unpacked_gguf(directory):
        check_unchanged(directory)
        gguf = GGUFSource(paths)
        _tell("GGUF", gguf.num_quantised)
        yield gguf
        forget_pages(paths)
        return
    with Checkpoint(directory) as checkpoint:
        quantisation = read_quantisation(directory, read_raw_config(directory, overrides))
        if quantisation is None:
            yield checkpoint
            return
        dequantised = DequantisedSource(checkpoint, format_of(quantisation))
        may_stay = torch.cuda.is_available() and dequantised.has_scaled
        _tell(quantisation.method, dequantised.num_quantised, may_stay=may_stay)
        yield dequantised


def _tell(method: str, num_quantised: int, *, may_stay: bool = False) -> None:
    log.info(
        "Quantised weights (%s): %d tensors are dequantised as they are loaded%s.",
        method,
        num_quantised,
        ", but for layers that multiply by them as they are stored" if may_stay else "",
    )
