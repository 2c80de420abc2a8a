"""How much memory a model will need, estimated from its files before it has ever run here.

For the first start only: afterwards measurements count (measurements.py). Reads headers of files, never
weights. Knows no engine: what each adds to its model's weights, its back end knows.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instance_manager.gguf.config import config_of
from instance_manager.gguf.errors import GgufError
from instance_manager.gguf.folders import find_in_cache, model_at, only_model
from instance_manager.gguf.header import GgufHeader, total_of
from instance_manager.gguf.headers import header_at
from instance_manager.gguf.models import GgufModel
from instance_manager.gguf.names import split_tag
from instance_manager.memory.kv_cache_size import dtype_bytes
from instance_manager.memory.measurements import Footprint
from instance_manager.process.hub_cache import hub_cache

_MIB = 1 << 20
_FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}  # tensors converted to the type that the engine computes in
_MAX_HEADER_BYTES = 100 * _MIB  # as the format's own reader allows
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Bytes of a whole instance, over all its GPUs where it has some."""

    weights_bytes: int
    kv_cache_bytes: int
    host_overhead_bytes: int  # interpreter, libraries' own data
    gpu_overhead_bytes: int  # of each GPU: CUDA context, activations
    num_gpus: int  # 0 = on the CPU
    step_bytes: int = 0  # activations on a CPU; on a GPU they are in its overhead
    grows_to_bytes: int = 0  # what an engine that allocates on use will soon hold under load

    def footprint(self, level: int = 0) -> Footprint:
        """Awake (0), with the KV cache dropped and GPU weights on the host (1), with both dropped (2)."""
        weights = self.weights_bytes if level < 2 else 0
        kv_cache = self.kv_cache_bytes if level < 1 else 0
        if self.num_gpus == 0:
            step = self.step_bytes if level < 1 else 0
            return Footprint(self.host_overhead_bytes + weights + kv_cache + step)
        if level == 0:
            each = math.ceil((weights + kv_cache) / self.num_gpus) + self.gpu_overhead_bytes
            return Footprint(self.host_overhead_bytes, each)
        return Footprint(self.host_overhead_bytes + weights, self.gpu_overhead_bytes)

    def expected(self, measured: Footprint | None, level: int = 0) -> Footprint:
        """What it will hold. `measured`: the peak of earlier runs, None if there were none.

        An engine that allocates on use may not have reached its full size in those runs.
        """
        if measured is None:
            return self.footprint(level)
        return measured if level > 0 else measured.peak(Footprint(self.grows_to_bytes))


@dataclass(frozen=True, slots=True)
class Overhead:
    """Bytes that an engine takes whatever its model is."""

    host_bytes: int  # interpreter, libraries' own data
    gpu_bytes: int  # on each GPU: context, CUDA graphs


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """What an engine is to load, and how."""

    path: Path  # a folder or a file
    params: Mapping[str, Any]  # merged, with underscores
    environ: Mapping[str, str]  # the engine's
    config: Mapping[str, Any]  # config.json, or as much of it as a GGUF file tells
    weights_bytes: int
    num_values: int | None = None  # of all tensors of a GGUF model


def read_load(model: str, params: Mapping[str, Any], environ: Mapping[str, str]) -> ModelLoad | None:
    """Of `model`, a path or a hub id; None if its files are missing or unreadable. Blocking: opens files."""
    path = locate(model, environ, params.get("revision"))
    if path is None:
        return None
    if (gguf := _gguf_model(path)) is not None:
        return _gguf_load(gguf, params, environ)
    config = _read_json(path / "config.json")
    weights_bytes = weights_size(path, dtype_bytes(params.get("dtype", "auto"), config))
    return None if weights_bytes is None else ModelLoad(path, params, environ, config, weights_bytes)


def locate(model: str, environ: Mapping[str, str], revision: object = None) -> Path | None:
    """The file or directory of a model: a path, or a hub id's snapshot in the hub cache."""
    path = Path(os.path.expanduser(model))
    if path.exists():
        return path
    if split_tag(model)[1] is not None:
        gguf = find_in_cache(hub_cache(environ), model)
        return None if gguf is None else gguf.path
    if not _HUB_ID.fullmatch(model):
        return None
    repository = hub_cache(environ) / f"models--{model.replace('/', '--')}"
    wanted = str(revision or "main")
    try:
        commit = (repository / "refs" / wanted).read_text().strip()
    except OSError:
        commit = wanted  # a commit hash has no ref file
    snapshot = repository / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _gguf_model(path: Path) -> GgufModel | None:
    """Of a GGUF file, or of a folder that has no other weights."""
    model = model_at(path) if path.suffix == ".gguf" and path.is_file() else only_model(path)
    return None if model is None or isinstance(header_at(model.path, whole=True), GgufError) else model


def _gguf_load(model: GgufModel, params: Mapping[str, Any], environ: Mapping[str, str]) -> ModelLoad | None:
    headers = [header_at(path, whole=True) for path in model.paths]
    readable = [one for one in headers if isinstance(one, GgufHeader) and one.tensors is not None]
    if model.problem is not None or len(readable) < len(headers):
        return None
    first = replace(readable[0], tensors=total_of(one.tensors for one in readable if one.tensors))
    num_values = first.tensors.num_values if first.tensors else None
    return ModelLoad(model.path, params, environ, config_of(first), model.weights_bytes, num_values)


def weights_size(
    path: Path, float_bytes: int | None, values_per_byte: Mapping[str, float] | None = None
) -> int | None:
    """Bytes of the weights once loaded; None if there are none, or not all of them.

    Floating-point tensors are counted with `float_bytes` each element, if given; quantised ones as stored, or
    by type (of safetensors) with so many values of `float_bytes` in a byte.
    """
    if path.is_file():
        return path.stat().st_size
    index = _read_json(path / "model.safetensors.index.json")
    names = set(index.get("weight_map", {}).values())
    if names:
        files = [path / name for name in sorted(names)]
    elif (path / "model.safetensors").exists():
        files = [path / "model.safetensors"]
    else:
        files = sorted(path.glob("*.safetensors"))
    if files and all(file.exists() for file in files):
        sizes = [_safetensors_size(file, float_bytes, values_per_byte or {}) for file in files]
        return None if None in sizes else sum(size for size in sizes if size is not None)
    others = [*path.glob("*.gguf")] or [*path.glob("pytorch_model*.bin")]
    if not all(file.exists() for file in others):
        return None  # a broken link: the hub's cache was cleaned
    return sum(file.stat().st_size for file in others) or None


def _safetensors_size(
    file: Path, float_bytes: int | None, values_per_byte: Mapping[str, float]
) -> int | None:
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= _MAX_HEADER_BYTES:
                return None
            header = json.loads(stream.read(length))
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        return sum(_tensor_size(tensor, float_bytes, values_per_byte) for tensor in tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not a safetensors file despite its name: the engine will report it


def _tensor_size(
    tensor: Mapping[str, Any], float_bytes: int | None, values_per_byte: Mapping[str, float]
) -> int:
    begin, end = tensor["data_offsets"]
    stored_bytes = int(end) - int(begin)
    if float_bytes is None:
        return stored_bytes
    if tensor["dtype"] not in _FLOAT_BYTES:
        values = values_per_byte.get(tensor["dtype"])
        return stored_bytes if values is None else int(stored_bytes * values * float_bytes)
    return stored_bytes // _FLOAT_BYTES[tensor["dtype"]] * float_bytes


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
