"""Loads safetensors checkpoints, single or sharded, into a model. Files are mapped, not read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from engine.checkpoint.layout import enumerate_names, weight_files
from engine.checkpoint.mapped_files import forget_pages
from engine.errors import CheckpointError
from engine.models.layers.weights import Shape, StoredLayer, WeightedLayer
from engine.models.tensor_source import ALL, TensorSource

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
    """The tensors of a directory, by name. A TensorSource and a context manager.

    Tensors remain valid after it, but what was read of the files no longer counts as this process's memory:
    most layers have copies, and those that don't read it again.
    """

    def __init__(self, directory: Path) -> None:
        """Raises CheckpointError if there are no safetensors, or a shard is missing."""
        self._directory = directory
        self._exit_stack = ExitStack()
        self._files_of: dict[str, Any] = {}  # tensor's name → its open file
        self._files = weight_files(directory)
        for path in self._files:
            handle = self._open(path)
            self._files_of.update(dict.fromkeys(handle.keys(), handle))
        self.names = frozenset(self._files_of)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exit_stack.close()
        forget_pages(self._files)

    def shape(self, name: str) -> Shape:
        return tuple(self._files_of[name].get_slice(name).get_shape())

    def tensor(self, name: str, *, rows: slice = ALL, columns: slice = ALL) -> torch.Tensor:
        """As saved, mapped from the file: what is read is what is used."""
        handle = self._files_of[name]
        tensor: torch.Tensor
        if rows == ALL and columns == ALL:
            tensor = handle.get_tensor(name)
        else:
            tensor = handle.get_slice(name)[rows if columns == ALL else (rows, columns)]
        return tensor

    def _open(self, path: Path) -> Any:
        try:
            handle: Any = safe_open(str(path), framework="pt", device="cpu")
            handle.__enter__()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} can't be read: {error}") from error
        self._exit_stack.callback(_close, handle)
        return handle


def _close(handle: Any) -> None:
    """After an error, threads of transformers may still read from it: then it closes behind the last one."""
    with suppress(RuntimeError):
        handle.__exit__(None, None, None)


def load_weights(model: Loadable, source: TensorSource) -> None:
    """Load every layer. Raises CheckpointError, naming missing, unexpected or misshapen tensors."""
    layers = list(_stored_layers(model, source))
    _check(_expected(layers), source, ignored=_ignored(model, source))
    for layer, stored in layers:
        layer.load_from(stored)


def expected_tensors(model: Loadable, source: TensorSource) -> dict[str, Shape]:
    """The names and shapes of all tensors that the model's layers want of this source."""
    return _expected(_stored_layers(model, source))


def has_own_head(checkpoint: TensorSource) -> bool:
    """Whether there is an lm_head.weight that isn't a copy of the embedding."""
    if not {_HEAD, _EMBEDDING} <= checkpoint.names:
        return False
    head, embedding = checkpoint.tensor(_HEAD), checkpoint.tensor(_EMBEDDING)
    if head.shape != embedding.shape:
        return True
    starts = range(0, len(head), _ROWS)
    return not all(torch.equal(head[at : at + _ROWS], embedding[at : at + _ROWS]) for at in starts)


def _stored_layers(model: Loadable, source: TensorSource) -> Iterator[tuple[WeightedLayer, StoredLayer]]:
    owners = frozenset(model.shared_weights().values())
    shared: dict[str, torch.Tensor] = {}  # tensors that several layers share are moved to the device once
    for path, layer in model.named_modules():
        if isinstance(layer, WeightedLayer):
            parts = _parts(model, path)
            yield (
                layer,
                StoredLayer(
                    source,
                    parts,
                    device=model.device,
                    dtype=model.dtype,
                    shared=None if owners.isdisjoint(parts) else shared,
                ),
            )


def _expected(layers: Iterable[tuple[WeightedLayer, StoredLayer]]) -> dict[str, Shape]:
    return {
        stored.full_name(name, part): shape
        for layer, stored in layers
        for name, shapes in layer.wanted(stored).items()
        for part, shape in enumerate(shapes)
    }


def _parts(model: Loadable, path: str) -> list[str]:
    """The checkpoint's paths for one of our layers: a fused layer has several."""
    path = model.shared_weights().get(path, path)
    parent, _, name = path.rpartition(".")
    return [f"{parent}.{part}" if parent else part for part in model.FUSED.get(name, (name,))]


def _ignored(model: Loadable, checkpoint: TensorSource) -> frozenset[str]:
    """Optional tensors that aren't needed: a copy of tied embeddings, tables of older savers."""
    copies = {f"{name}.weight" for name in model.shared_weights()}
    tables = {name for name in checkpoint.names if name.endswith(".rotary_emb.inv_freq")}
    unused = {name for name in checkpoint.names if name.startswith(model.UNUSED)}
    return frozenset(copies | tables | unused)


def _check(expected: Mapping[str, Shape], checkpoint: TensorSource, *, ignored: frozenset[str]) -> None:
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
