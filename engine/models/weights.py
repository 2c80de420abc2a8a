"""Loads safetensors checkpoints, single or sharded, into a model. Files are mapped, not read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from engine.checkpoint.layout import enumerate_names, weight_files
from engine.checkpoint.mapped_files import forget_pages
from engine.errors import CheckpointError
from engine.models.layers.weights import WeightedLayer

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_ROWS = 4096  # compared at a time: different heads differ in the first, and the rest isn't read


class Loadable(Protocol):
    """A model that is loaded from a checkpoint; its WeightedLayers have the checkpoint's names."""

    UNUSED: ClassVar[tuple[str, ...]]  # name prefixes of optional tensors that aren't needed
    dtype: torch.dtype
    device: torch.device

    @property
    def FUSED(self) -> dict[str, tuple[str, ...]]:
        """Our layer's name → the checkpoint's names of its parts."""
        ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...

    def shared_weights(self) -> dict[str, str]:
        """Layers that are loaded from another layer's tensors: name → the other's name."""
        ...


class Checkpoint:
    """The tensors of a directory, by name. A context manager; tensors remain valid after it."""

    def __init__(self, directory: Path, *, rename: Callable[[str], str] = str) -> None:
        """`rename` maps a stored name to the model's name, if savers differ in names.

        Raises CheckpointError if there are no safetensors, or a shard is missing.
        """
        self._directory = directory
        self._exit_stack = ExitStack()
        self._stored: dict[str, tuple[Any, str]] = {}  # tensor's name → its open file, its name there
        self._files = weight_files(directory)
        for path in self._files:
            handle = self._open(path)
            self._stored.update({rename(name): (handle, name) for name in handle.keys()})  # noqa: SIM118

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exit_stack.close()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        handle, stored_name = self._stored[name]
        return tuple(handle.get_slice(stored_name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor as saved, mapped from the file."""
        handle, stored_name = self._stored[name]
        tensor: torch.Tensor = handle.get_tensor(stored_name)
        return tensor

    def forget_pages(self) -> None:
        """Release the pages that were read; tensors that are still mapped read them again when used."""
        forget_pages(self._files)

    def _open(self, path: Path) -> Any:
        try:
            return self._exit_stack.enter_context(safe_open(str(path), framework="pt", device="cpu"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} can't be read: {error}") from error


@dataclass(frozen=True, slots=True)
class _Target:
    """One tensor of one layer, and the checkpoint's tensors that it consists of."""

    layer: WeightedLayer
    tensor_name: str
    sources: Mapping[str, tuple[int, ...]]  # name in the checkpoint → expected shape


def load_weights(model: Loadable, checkpoint: Checkpoint) -> None:
    """Load every layer. Raises CheckpointError, naming missing, unexpected or misshapen tensors."""
    targets = list(_targets(model))
    expected = {name: shape for target in targets for name, shape in target.sources.items()}
    _check(expected, checkpoint, ignored=_ignored(model, checkpoint))
    shared = {f"{name}." for name in model.shared_weights().values()}
    moved: dict[str, torch.Tensor] = {}  # tensors that several layers share are moved to the device once
    for target in targets:
        parts = []
        for name in target.sources:
            part = moved.get(name)
            if part is None:
                part = checkpoint.tensor(name).to(device=model.device, dtype=model.dtype)
            if any(name.startswith(prefix) for prefix in shared):
                moved[name] = part
            parts.append(part)
        target.layer.load(target.tensor_name, parts)
    checkpoint.forget_pages()  # most layers have copies: both would count as this process's memory


def has_own_head(checkpoint: Checkpoint) -> bool:
    """Whether there is an lm_head.weight that isn't a copy of the embedding."""
    if not {_HEAD, _EMBEDDING} <= checkpoint.names:
        return False
    head, embedding = checkpoint.tensor(_HEAD), checkpoint.tensor(_EMBEDDING)
    if head.shape != embedding.shape:
        return True
    starts = range(0, len(head), _ROWS)
    return not all(torch.equal(head[at : at + _ROWS], embedding[at : at + _ROWS]) for at in starts)


def _targets(model: Loadable) -> Iterator[_Target]:
    for path, layer in model.named_modules():
        if isinstance(layer, WeightedLayer):
            for tensor_name, shapes in layer.part_shapes().items():
                names = [f"{part}.{tensor_name}" for part in _parts(model, path)]
                yield _Target(layer, tensor_name, dict(zip(names, shapes, strict=True)))


def _parts(model: Loadable, path: str) -> list[str]:
    """The checkpoint's paths for one of our layers: a fused layer has several."""
    path = model.shared_weights().get(path, path)
    parent, _, name = path.rpartition(".")
    return [f"{parent}.{part}" if parent else part for part in model.FUSED.get(name, (name,))]


def _ignored(model: Loadable, checkpoint: Checkpoint) -> frozenset[str]:
    """Optional tensors that aren't needed: a copy of tied embeddings, tables of older savers."""
    copies = {f"{name}.weight" for name in model.shared_weights()}
    tables = {name for name in checkpoint.names if name.endswith(".rotary_emb.inv_freq")}
    unused = {name for name in checkpoint.names if name.startswith(model.UNUSED)}
    return frozenset(copies | tables | unused)


def _check(
    expected: Mapping[str, tuple[int, ...]], checkpoint: Checkpoint, *, ignored: frozenset[str]
) -> None:
    problems = []
    if missing := sorted(expected.keys() - checkpoint.names):
        problems.append(f"lacks {enumerate_names(missing)}")
    if extra := sorted(checkpoint.names - expected.keys() - ignored):
        problems.append(f"has {enumerate_names(extra)}, which the model doesn't use")
    misshapen = [
        f"{name} {list(checkpoint.shape(name))} instead of {list(shape)}"
        for name, shape in sorted(expected.items())
        if name in checkpoint.names and checkpoint.shape(name) != shape
    ]
    if misshapen:
        problems.append(f"has wrong shapes: {enumerate_names(misshapen)}")
    if problems:
        raise CheckpointError(f"The checkpoint doesn't fit its config.json: it {'; it '.join(problems)}.")
