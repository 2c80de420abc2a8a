"""Which GGUF files llama-server loads for a model: weights, and a projector beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instance_manager.backends.model_paths import find_model
from instance_manager.errors import InvalidSpec, ModelNotFound
from instance_manager.gguf.folders import model_at, models_in
from instance_manager.gguf.header import GgufHeader
from instance_manager.gguf.headers import header_at
from instance_manager.gguf.models import GgufModel
from instance_manager.gguf.names import default_of, with_tag
from instance_manager.memory.checkpoint_size import locate

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class LlamaFiles:
    """`weights`: the file, or the first of its parts; None: a hub id that it would download."""

    weights: Path | None
    hub_id: str = ""  # with the quantisation, `owner/name:Q4_K_M`
    model: GgufModel | None = None  # None, too, for a file that isn't a model's

    @property
    def projector(self) -> Path | None:
        return None if self.model is None else self.model.projector

    def header(self, *, whole: bool = False) -> GgufHeader:
        """Without keys for a file that can't be read. Blocks; `whole` as in `header_at`."""
        found = None if self.weights is None else header_at(self.weights, whole=whole)
        return found if isinstance(found, GgufHeader) else GgufHeader(0, {})


def find_files(
    model: str, params: Mapping[str, Any], model_dirs: Sequence[Path], environ: Mapping[str, str]
) -> LlamaFiles:
    """Of `model`: a file, a folder, a name under `model_dirs` or a hub id, maybe with `:QUANTISATION`.

    Raises ModelNotFound, and InvalidSpec for files of another format.
    """
    located, tag = _locate(model, params, model_dirs, environ)
    if located is None:
        return LlamaFiles(None, model)
    found = model_at(located) if located.is_file() else None
    if not located.is_file() or tag:
        found = _choose(located if found is None else found.folder.path, tag, model)
    return LlamaFiles(located if found is None else found.path, model=found)


def _locate(
    model: str, params: Mapping[str, Any], model_dirs: Sequence[Path], environ: Mapping[str, str]
) -> tuple[Path | None, str]:
    """Where it is, and the quantisation that is still to be found there. Raises ModelNotFound."""
    name, _, tag = model.rpartition(":")
    try:
        located = locate(find_model(model, model_dirs), environ, params.get("revision"))
    except ModelNotFound:
        if not name:
            raise
        located = None
    if located is not None or not name:
        return located, ""
    return locate(find_model(name, model_dirs), environ, params.get("revision")), tag


def _choose(folder: Path, tag: str, model: str) -> GgufModel:
    """Raises ModelNotFound and InvalidSpec."""
    there = models_in(folder)
    if not there:
        message = f"model {model!r}: llama.cpp runs GGUF files, and {folder} has none"
        raise InvalidSpec(message, param="model_name")
    sets = [one.files for one in there]
    chosen = with_tag(sets, tag) if tag else default_of(sets)
    if chosen is None:
        message = f"model {model!r}: {folder} has no GGUF file of {tag}; it has {_listed(there)}"
        raise ModelNotFound(message, param="model_name")
    return next(one for one in there if one.files is chosen)


def _listed(models: Sequence[GgufModel]) -> str:
    names = [one.files.quantisation or one.path.name for one in models]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
