"""How much memory a model will need, estimated from its files before it has ever run here.

For the first start only: afterwards measurements count (measurements.py). Reads headers of files, never
weights. About the engines it knows their flags, and overheads that were measured once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from instance_manager.backends.model_paths import expand_home
from instance_manager.memory.activation_size import Activations, activations
from instance_manager.memory.kv_cache_size import (
    Machine,
    decoder_config,
    dtype_bytes,
    generates,
    is_cache_size_set,
    kv_cache_bytes,
    quantity,
)
from instance_manager.memory.measurements import Footprint
from instance_manager.process.hub_cache import hub_cache

_GIB = 1 << 30
_MIB = 1 << 20
_FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}  # tensors converted to the type that the engine computes in
_PACKED_BYTES = 2  # per weight
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
    activations: Activations = field(default_factory=Activations)  # on a CPU
    grows_to_bytes: int = 0  # what an engine that allocates on use will soon hold under load

    def footprint(self, level: int = 0) -> Footprint:
        """Awake (0), with the KV cache dropped and GPU weights on the host (1), with both dropped (2)."""
        weights = self.weights_bytes if level < 2 else 0
        kv_cache = self.kv_cache_bytes if level < 1 else 0
        if self.num_gpus == 0:
            step = self.activations.layers + self.activations.rest if level < 1 else 0
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


def estimate(
    model: str, engine: str, params: Mapping[str, Any], environ: Mapping[str, str], machine: Machine
) -> Estimate | None:
    """What an instance of `model` (a path or a hub id) needs; None if its files are missing or unreadable.

    `params`: merged, with underscores; `environ`: the engine's. Blocking: opens files.
    """
    path = locate(model, environ, params.get("revision"))
    if path is None:
        return None
    config = _read_json(path / "config.json")
    weights_bytes = weights_size(path, dtype_bytes(params.get("dtype", "auto"), config))
    if weights_bytes is None:
        return None
    overhead = _OVERHEADS.get(engine, _COMMAND_OVERHEAD)
    gpu_overhead_bytes = overhead.gpu_bytes if machine.num_gpus else 0
    fixed_bytes = weights_bytes + gpu_overhead_bytes * machine.num_gpus
    cache_bytes = 0  # unknown for a command
    if engine != "command":
        cache_bytes = kv_cache_bytes(engine, params, config, environ, machine, fixed_bytes)
    found = Estimate(
        weights_bytes=weights_bytes,
        kv_cache_bytes=cache_bytes,
        host_overhead_bytes=overhead.host_bytes,
        gpu_overhead_bytes=gpu_overhead_bytes,
        num_gpus=machine.num_gpus,
    )
    return _on_a_cpu(found, params, config) if engine == "engine" and not machine.num_gpus else found


def _on_a_cpu(found: Estimate, params: Mapping[str, Any], config: Mapping[str, Any]) -> Estimate:
    """For the embedded engine, which allocates main memory on use."""
    weights_bytes = found.weights_bytes + _packed_head_bytes(params, config)
    steps = activations(params, config)
    # A cache of default size may never be filled.
    cache_bytes = found.kv_cache_bytes if is_cache_size_set(params) else 0
    return replace(
        found,
        weights_bytes=weights_bytes,
        activations=steps,
        grows_to_bytes=_USED_OVERHEAD_BYTES + weights_bytes + cache_bytes + steps.layers,
    )


def _packed_head_bytes(params: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """A head tied to the embedding has a second, packed copy on the CPU if its weights are 16-bit."""
    text = decoder_config(config)
    value_bytes = dtype_bytes(params.get("dtype", "auto"), text)
    if value_bytes != _PACKED_BYTES or not text.get("tie_word_embeddings") or not generates(params, config):
        return 0
    return (quantity(text.get("vocab_size")) or 0) * (quantity(text.get("hidden_size")) or 0) * value_bytes


@dataclass(frozen=True, slots=True)
class _Overhead:
    host_bytes: int
    gpu_bytes: int


_OVERHEADS = {
    "engine": _Overhead(448 * _MIB, 1 * _GIB),  # 300 MiB once it is ready, 90 of kernels for many shapes
    "vllm": _Overhead(2 * _GIB, 2 * _GIB),  # two processes; CUDA graphs
}
_USED_OVERHEAD_BYTES = 288 * _MIB  # per embedded engine when several run and share their libraries' pages
_COMMAND_OVERHEAD = _Overhead(256 * _MIB, _GIB // 2)


def locate(model: str, environ: Mapping[str, str], revision: object = None) -> Path | None:
    """The file or directory of a model: a path, or a hub id's snapshot in the hub cache."""
    path = expand_home(model)
    if path.exists():
        return path
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


def weights_size(path: Path, float_bytes: int | None) -> int | None:
    """Bytes of the weights once loaded; None if there are none, or not all of them.

    Floating-point tensors are counted with `float_bytes` each element, if given; quantised ones as stored.
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
        sizes = [_safetensors_size(file, float_bytes) for file in files]
        return None if None in sizes else sum(size for size in sizes if size is not None)
    others = [*path.glob("*.gguf")] or [*path.glob("pytorch_model*.bin")]
    if not all(file.exists() for file in others):
        return None  # a broken link: the hub's cache was cleaned
    return sum(file.stat().st_size for file in others) or None


def _safetensors_size(file: Path, float_bytes: int | None) -> int | None:
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= _MAX_HEADER_BYTES:
                return None
            header = json.loads(stream.read(length))
        return sum(_tensor_size(t, float_bytes) for name, t in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not a safetensors file despite its name: the engine will report it


def _tensor_size(tensor: Mapping[str, Any], float_bytes: int | None) -> int:
    begin, end = tensor["data_offsets"]
    stored_bytes = int(end) - int(begin)
    if float_bytes is None or tensor["dtype"] not in _FLOAT_BYTES:
        return stored_bytes
    return stored_bytes // _FLOAT_BYTES[tensor["dtype"]] * float_bytes


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
