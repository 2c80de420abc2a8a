"""Builds a model of transformers and fills it from a source of tensors, without a second copy of them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedModel, modeling_utils

from engine.checkpoint.layout import enumerate_names
from engine.errors import CheckpointError
from engine.models.tensor_source import TensorSource
from engine.models.transformers_backend.family import TransformersConfig
from engine.models.transformers_backend.stored_parts import PartOf, StoredPart, stored_parts

_HEADS = ("lm_head.", "score.", "embed_out.")
_TEXT_PARTS = ("language_model", "text_model")

log = logging.getLogger(__name__)


class _StoredTensor:
    """Reads a tensor when transformers asks for its contents, as it does of safetensors' own slices."""

    def __init__(self, source: TensorSource, name: str) -> None:
        self._source = source
        self._name = name
        self.part: StoredPart | None = None  # None: all of it

    def __getitem__(self, key: Any) -> torch.Tensor:
        tensor = (
            self._source.tensor(self._name) if self.part is None else self.part.read(self._source, self._name)
        )
        return tensor[key]

    def get_shape(self) -> list[int]:
        return list(self._source.shape(self._name))


def quieten() -> None:
    """What the library says of a load, its errors tell as well, in the engine's words."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def headless(config: TransformersConfig) -> TransformersConfig:
    """The same model without its head. Where all text looks both ways, the engine's attention does."""
    settings = copy.copy(config.settings)
    settings.is_causal = True
    if getattr(settings, "use_bidirectional_attention", None) in (True, "all"):
        settings.use_bidirectional_attention = None
    return replace(config, settings=settings, model_class=MODEL_MAPPING[type(settings)])


def _has_head(config: TransformersConfig) -> bool:
    return config.model_class is not MODEL_MAPPING[type(config.settings)]


def _wanted(config: TransformersConfig, source: TensorSource) -> dict[str, _StoredTensor]:
    """The tensors by the names that they have in the model, without parts that it lacks."""
    wanted = {}
    for stored in source.names:
        name = _text_name(stored) if config.is_part else stored
        if name is not None and (_has_head(config) or not name.startswith(_HEADS)):
            wanted[name] = _StoredTensor(source, stored)
    return wanted


def _text_name(stored: str) -> str | None:
    """The name that a tensor of a larger model has in its text part; None if it isn't of that part.

    Savers wrote `language_model.model.layers…` and `model.language_model.layers…` for `model.layers…`.
    """
    path = stored.split(".")
    inner = next((part for part in path if part in _TEXT_PARTS), None)
    if inner is None:
        return stored if path[0] == "lm_head" else None
    path.remove(inner)
    return ".".join(path)


def build_empty(config: TransformersConfig, attention: str) -> PreTrainedModel:
    """The model without memory for its weights, to see how it is made."""
    quieten()
    with torch.device("meta"):
        model: PreTrainedModel = config.model_class._from_config(
            config.settings, attn_implementation=attention
        ).eval()
    return model


@contextmanager
def _loaded_tensors_stay() -> Iterator[None]:
    """Modules that were loaded whole get no initial values.

    Some classes write them all the same, such as zeros for the padding's row of an embedding. A tensor that
    is mapped from the file would lose them again when its pages are released.
    """
    initialise = PreTrainedModel._initialize_weights

    def unless_loaded(self: PreTrainedModel, module: nn.Module, *args: Any) -> None:
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if not own or not all(getattr(tensor, "_is_hf_initialized", False) for tensor in own):
            initialise(self, module, *args)

    owner: Any = PreTrainedModel
    owner._initialize_weights = unless_loaded
    try:
        yield
    finally:
        owner._initialize_weights = initialise


@contextmanager
def _merges_told() -> Iterator[None]:
    """Transformers collects errors of merging stored tensors for a report that nobody sees. Raises them."""
    patched: Any = modeling_utils
    report = patched.log_state_dict_report

    def tell(*args: Any, loading_info: Any, **options: Any) -> None:
        if unmade := sorted(loading_info.conversion_errors):
            raise CheckpointError(
                f"The checkpoint doesn't fit its config.json: {enumerate_names(unmade)} can't be made of the "
                "stored tensors: some are missing, or have shapes that don't fit each other."
            )
        report(*args, loading_info=loading_info, **options)

    patched.log_state_dict_report = tell
    try:
        yield
    finally:
        patched.log_state_dict_report = report


def load(
    config: TransformersConfig,
    source: TensorSource,
    *,
    attention: str,
    dtype: torch.dtype,
    device: torch.device,
    part_of: PartOf | None = None,
) -> PreTrainedModel:
    """Transformers renames and merges stored tensors as the family's class needs them.

    `part_of`: of a parameter, what this device holds. Raises CheckpointError if tensors are missing or have
    other shapes.
    """
    quieten()
    wanted = _wanted(config, source)
    if part_of is not None:
        parts = stored_parts(build_empty(config, attention), wanted, part_of)
        for name, part in parts.items():
            wanted[name].part = part
    settings = config.settings
    if config.is_part and not any(name.startswith("lm_head.") for name in wanted):
        settings = copy.deepcopy(settings)  # what surrounds the part says so, or leaves it to the tensors
        settings.tie_word_embeddings = True
    with _loaded_tensors_stay(), _merges_told():
        model, found = config.model_class.from_pretrained(
            None,
            config=settings,
            state_dict=wanted,
            dtype=dtype,
            device_map=None if device.type == "cpu" else str(device),
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are listed then, and refused below
        )
    problems = []
    if missing := sorted(found["missing_keys"]):
        problems.append(f"lacks {enumerate_names(missing)}")
    if misshapen := sorted(found["mismatched_keys"]):
        shapes = [f"{name} {list(stored)} instead of {list(shape)}" for name, stored, shape in misshapen]
        problems.append(f"has wrong shapes: {enumerate_names(shapes)}")
    if problems:
        raise CheckpointError(f"The checkpoint doesn't fit its config.json: it {'; it '.join(problems)}.")
    if unused := sorted(found["unexpected_keys"]):
        log.warning("The checkpoint has tensors that the model doesn't use: %s.", enumerate_names(unused))
    loaded: PreTrainedModel = model.eval()
    return loaded
