"""A model's adapters: reads them, and tells its layers which rows of a step are whose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from engine.checkpoint.adapter_config import CONFIG, WEIGHTS, AdapterConfig, read_adapter
from engine.checkpoint.adapter_shapes import PREFIX, A, B, not_of_the_model, wrong_shape
from engine.checkpoint.layout import enumerate_names
from engine.core.adapter import Adapter
from engine.core.batch import Batch
from engine.errors import CheckpointError, UnsupportedModel
from engine.models.layers.division import Share
from engine.models.layers.linear import Linear
from engine.models.lora.layer import AdaptedLinear, Columns, LayerAdapter, StepAdapters

_HEAD = "lm_head"  # it sees the sampled rows only


class Adaptable(Protocol):
    dtype: torch.dtype
    device: torch.device

    @property
    def FUSED(self) -> Mapping[str, tuple[str, ...]]: ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...


@dataclass(frozen=True, slots=True)
class _Projection:
    """A module as the checkpoint names it, and where our layer has it."""

    layer: str
    part: int
    outputs: slice  # of the layer's own
    stored_outputs: Sequence[Share]  # what this device has of the checkpoint's: one share, or one of each
    stored_inputs: Share  # projection that the checkpoint has in one matrix

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Output and input features."""
        return self.stored_outputs[0].size, self.stored_inputs.size

    def share_of_a(self, a: torch.Tensor) -> torch.Tensor:
        return a[:, self.stored_inputs.of(self.stored_inputs.size)]

    def share_of_b(self, b: torch.Tensor) -> torch.Tensor:
        """The devices' products add up, where inputs are divided, with those of the layer's own matrix."""
        shares = self.stored_outputs
        return b if shares[0].is_whole else torch.cat([b[share.of(share.size)] for share in shares])


class Adapters:
    """Attach it to a model, and again to the one that replaces it after a sleep."""

    def __init__(self, *, max_rank: int) -> None:
        self._max_rank = max_rank
        self._step = StepAdapters()
        self._projections: dict[str, _Projection] = {}
        self._dtype, self._device = torch.float32, torch.device("cpu")

    def attach(self, model: Adaptable) -> None:
        self._dtype, self._device = model.dtype, model.device
        layers = [(path, module) for path, module in model.named_modules() if isinstance(module, Linear)]
        adapted = [(path, linear) for path, linear in layers if path != _HEAD]
        self._projections = {
            name: projection
            for path, linear in adapted
            for name, projection in _projections(model, path, linear)
        }
        for path, linear in adapted:
            linear.use_around(partial(AdaptedLinear, layer=path, step=self._step))

    def begin(self, batch: Batch) -> bool:
        """Tell the layers whose rows the next step has; returns whether it has any adapter."""
        rows_of: dict[int, list[int]] = {}
        adapters: dict[int, Adapter] = {}
        first = 0
        for sequence in batch.sequences:
            stop = first + len(sequence.input.token_ids)
            if sequence.adapter is not None:
                adapters[id(sequence.adapter)] = sequence.adapter
                rows_of.setdefault(id(sequence.adapter), []).extend(range(first, stop))
            first = stop
        self._step.num_rows = first
        self._step.groups = [
            (adapter.weights, None if len(rows) == first else torch.tensor(rows, device=self._device))
            for adapter, rows in ((adapters[key], rows) for key, rows in rows_of.items())
        ]
        return bool(adapters)

    def end(self) -> None:
        """Hold no adapter beyond its step: it may have been the last with it."""
        self._step.groups = ()

    @torch.inference_mode()
    def read(self, name: str, directory: Path) -> Adapter:
        """Safe in any thread. Raises CheckpointError, and UnsupportedModel, naming what is unsupported."""
        config = read_adapter(name, directory, max_rank=self._max_rank)
        tensors = self._tensors(directory, config)
        by_layer: dict[str, list[str]] = {}
        for module in sorted(tensors, key=lambda module: self._projections[module].part):
            by_layer.setdefault(self._projections[module].layer, []).append(module)
        weights = {
            layer: self._layer_adapter(modules, tensors, config) for layer, modules in by_layer.items()
        }
        if broken := [one for layer, one in by_layer.items() if not weights[layer].is_finite]:
            raise CheckpointError(
                f"{directory / WEIGHTS}: {enumerate_names(broken[0])} has values that are no numbers, or too "
                f"large for {str(self._dtype).removeprefix('torch.')}: no answer would make sense."
            )
        return Adapter(name, weights)

    def _tensors(
        self, directory: Path, config: AdapterConfig
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """A and B of each module. Raises CheckpointError and UnsupportedModel."""
        path = directory / WEIGHTS
        try:
            with safe_open(str(path), framework="pt", device="cpu") as file:
                stored = {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} can't be read: {error}") from error
        modules = {name.removesuffix(A) for name in stored if name.endswith(A)}
        self._check(path, config, stored, modules)
        return {module: (stored[module + A], stored[module + B]) for module in modules}

    def _check(
        self, path: Path, config: AdapterConfig, stored: Mapping[str, torch.Tensor], modules: set[str]
    ) -> None:
        if unknown := sorted(modules - self._projections.keys()):
            raise not_of_the_model(path, unknown)
        wanted = (
            {module for module in self._projections if config.targets(module)}
            if config.names_all
            else modules
        )
        names = {module + end for module in modules | wanted for end in (A, B)}
        if missing := sorted(names - stored.keys()):
            raise CheckpointError(f"{path} lacks {enumerate_names(missing)}, which {CONFIG} names.")
        unnamed = {module for module in modules if not config.targets(module)}
        if extra := sorted((stored.keys() - names) | unnamed):
            raise CheckpointError(f"{path} has {enumerate_names(extra)}, which {CONFIG} doesn't name.")
        if not modules:
            raise CheckpointError(f"{path} has no tensors for this model.")
        for module in sorted(modules):
            projection, rank = self._projections[module], config.rank_of(module)
            out_features, in_features = projection.stored_shape
            wanted_shapes = ((rank, in_features), (out_features, rank))
            for end, shape in zip((A, B), wanted_shapes, strict=True):
                if not stored[module + end].is_floating_point():
                    raise UnsupportedModel(
                        f"{path}: {module + end} has values of {stored[module + end].dtype}, which aren't "
                        "supported.",
                        advice=None,
                    )
                if tuple(stored[module + end].shape) != shape:
                    raise wrong_shape(path, module + end, stored[module + end].shape, shape)

    def _layer_adapter(
        self,
        modules: Sequence[str],
        tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
        config: AdapterConfig,
    ) -> LayerAdapter:
        """`modules`: those that one layer fuses, in its order."""
        columns, first = [], 0
        for module in modules:
            stop = first + config.rank_of(module)
            projection = self._projections[module]
            b = projection.share_of_b(tensors[module][1]).float() * config.scaling_of(module)
            columns.append(Columns(projection.outputs, slice(first, stop), self._placed(b)))
            first = stop
        parts = [self._projections[module].share_of_a(tensors[module][0]) for module in modules]
        return LayerAdapter(self._placed(torch.cat(parts)), columns)

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device=self._device, dtype=self._dtype).contiguous()


def _projections(model: Adaptable, path: str, linear: Linear) -> Iterator[tuple[str, _Projection]]:
    parent, _, name = path.rpartition(".")
    names = model.FUSED.get(name, (name,))
    # A checkpoint may store as one what our layer fuses.
    division, is_apart = linear.division, len(names) > 1
    sections = [share for _, share in division.sections(is_apart=is_apart)]
    sizes = linear.out_features if is_apart else (sum(linear.out_features),)
    first = 0
    for part, (own_name, size) in enumerate(zip(names, sizes, strict=True)):
        full_name = f"{parent}.{own_name}" if parent else own_name
        shares = sections[part : part + 1] if is_apart else sections
        yield full_name, _Projection(path, part, slice(first, first + size), shares, division.inputs)
        first += size
