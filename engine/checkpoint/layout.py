"""Which kind of checkpoint a directory contains, judged by names and JSON alone, before any weight is read.

The engine runs safetensors in Hugging Face layout, and GGUF files that are named themselves. Any other
checkpoint is refused here, naming what can run it. Berth detects the same kinds, in the same words, before it
starts an engine (instance_manager/backends/checkpoint_problem.py; a test compares the two). Knows nothing of
torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.checkpoint.quantisation import UNPACKED_GGUF
from engine.checkpoint.raw_config import read_json
from engine.errors import MAY_RUN_ON_VLLM, CheckpointError, UnsupportedModel

INDEX_NAME = "model.safetensors.index.json"
_SHARD = re.compile(r"(.*)-(\d{5,})-of-(\d{5,})\.safetensors")
PICKLED = (".bin", ".pt", ".pth")
_NO_WEIGHTS = frozenset(
    {"training_args.bin", "optimizer.bin", "scheduler.bin", "optimizer.pt", "scheduler.pt"}
)
_TOKENIZERS = frozenset({"tokenizer.json", "vocab.json", "vocab.txt", "tekken.json"})
_LFS_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 1024  # pointers are never larger
_MAX_HEADER_BYTES = 100 << 20  # as the format's own reader allows
_SHOWN = 5  # names in an error message


def check_layout(directory: Path) -> None:
    """Raise UnsupportedModel unless there is a config.json of a complete model."""
    names = _names_in(directory)
    if "adapter_config.json" in names and not _files_without_index(directory):
        base = _read_quietly(directory / "adapter_config.json").get("base_model_name_or_path")
        raise UnsupportedModel(
            f"{directory} is a LoRA adapter of {base!r}, not a complete model: serve that model with "
            "enable_lora and lora_modules, or merge them.",
            advice=None,
        )
    if "config.json" in names:
        return
    if "model_index.json" in names:
        raise UnsupportedModel(
            f"{directory} is a diffusion pipeline (model_index.json), which doesn't generate text: serve it "
            "with a command (`engine: command`).",
            advice=None,
        )
    if any(name.endswith(".gguf") for name in names):
        raise gguf(directory)
    if "params.json" in names:
        raise UnsupportedModel(f"{directory} is in its maker's own format (params.json), not Hugging Face's.")
    unfinished = any(name.endswith(".safetensors") for name in names)
    raise UnsupportedModel(
        f"{directory} has no config.json: "
        + ("its download isn't finished." if unfinished else "it is not a model in Hugging Face layout."),
        advice=None,
    )


def gguf(path: Path) -> UnsupportedModel:
    return UnsupportedModel(
        f"{path} holds GGUF weights only: name the .gguf file as the model, or run llama.cpp "
        "(`engine: llama`).",
        advice=None,
    )


def unpacked_gguf(directory: Path) -> list[Path]:
    """The GGUF files that have the weights of a directory made of their metadata; none of any other."""
    return [Path(path) for path, _ in _recorded(directory)]


def unpacked_record(paths: Sequence[Path]) -> list[tuple[str, list[int]]]:
    """What `unpacked_gguf` and `check_unchanged` read in such a directory. Raises OSError."""
    return [(str(path), _state(path)) for path in paths]


def check_unchanged(directory: Path) -> None:
    """Raise CheckpointError if a GGUF file isn't the one any more that the directory was made of."""
    for path, state in _recorded(directory):
        try:
            is_same = _state(Path(path)) == state
        except OSError as error:
            raise CheckpointError(f"{path} can't be read: {error.strerror or error}.") from error
        if not is_same:
            raise CheckpointError(f"{path} has changed since the engine read its header: start it again.")


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _recorded(directory: Path) -> list[tuple[str, list[int]]]:
    try:
        return [(str(path), state) for path, state in json.loads((directory / UNPACKED_GGUF).read_bytes())]
    except (OSError, ValueError, TypeError):
        return []


def weight_files(directory: Path) -> list[Path]:
    """The safetensors of a model. Raises UnsupportedModel if there are none or some are missing.

    CheckpointError for an invalid index.
    """
    if (directory / INDEX_NAME).exists():
        weight_map = read_json(directory / INDEX_NAME).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{directory / INDEX_NAME} has no weight_map.")
        paths = [directory / name for name in sorted({str(name) for name in weight_map.values()})]
        source = "its index names"
    else:
        paths = _files_without_index(directory)
        source = "the others' names tell of"
        paths += [path for path in _all_shards(paths) if path not in paths]
    if not paths:
        raise _weightless(directory)
    if absent := [path.name for path in paths if not path.exists()]:
        raise UnsupportedModel(
            f"{directory} lacks {enumerate_names(absent)}, which {source}: its download isn't finished.",
            advice=None,
        )
    return paths


def check_whole(path: Path) -> None:
    """Raise UnsupportedModel for a placeholder of a weights file, or for a truncated one.

    CheckpointError if it can't be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            header = file.read(length) if length <= _MAX_HEADER_BYTES else None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}.") from error
    if size <= _POINTER_BYTES and len(start) == 8 and _LFS_POINTER.startswith(start):
        raise UnsupportedModel(
            f"{path.parent} has a Git LFS pointer in place of {path.name}: `git lfs pull` fetches it.",
            advice=None,
        )
    if header is None:
        return  # its reader will report what is wrong
    if len(header) < length or size < 8 + length + _tensor_bytes(header):
        raise UnsupportedModel(
            f"{path.parent} has only the beginning of {path.name}: its download isn't finished.", advice=None
        )


def check_tokenizer(directory: Path) -> None:
    """Raise UnsupportedModel unless there is a file that may be a tokenizer."""
    names = _names_in(directory)
    if not names & _TOKENIZERS and not any(name.endswith((".model", ".tiktoken")) for name in names):
        raise UnsupportedModel(
            f"{directory} has no tokenizer: neither tokenizer.json nor another known file.", advice=None
        )


def enumerate_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _names_in(directory: Path) -> frozenset[str]:
    """Raises CheckpointError."""
    try:
        return frozenset(path.name for path in directory.iterdir())
    except OSError as error:
        raise CheckpointError(f"{directory} can't be read: {error.strerror or error}.") from error


def _files_without_index(directory: Path) -> list[Path]:
    """The model's files if it has no index: a single file, else shards, without adapters beside the model."""
    whole = directory / "model.safetensors"
    if whole.exists():
        return [whole]
    paths = sorted(directory.glob("*.safetensors"))
    return [path for path in paths if not path.name.startswith("adapter_")]


def _all_shards(paths: list[Path]) -> list[Path]:
    """All shards that the names of these files imply."""
    shards = [(path, match) for path in paths if (match := _SHARD.fullmatch(path.name))]
    return [
        path.with_name(f"{match[1]}-{number:0{len(match[2])}}-of-{match[3]}.safetensors")
        for path, match in shards[:1]
        for number in range(1, min(int(match[3]), 10_000) + 1)
    ]


def _weightless(directory: Path) -> UnsupportedModel:
    names = sorted(_names_in(directory))
    pickled = [name for name in names if name.endswith(PICKLED) and name not in _NO_WEIGHTS]
    if pickled:
        return UnsupportedModel(
            f"{directory} has no .safetensors file, but pickled weights ({enumerate_names(pickled)}), "
            f"which may run code when they are read: convert them to safetensors, or {MAY_RUN_ON_VLLM}.",
            advice=None,
        )
    if any(name.endswith(".gguf") for name in names):
        return gguf(directory)
    return UnsupportedModel(
        f"{directory} has no .safetensors file: it contains no weights, or their download isn't finished.",
        advice=None,
    )


def _tensor_bytes(header: bytes) -> int:
    """The size of all tensors in a header; 0 if it can't be read, which its reader will report."""
    try:
        tensors = json.loads(header)
        return max((int(t["data_offsets"][1]) for k, t in tensors.items() if k != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
        return 0


def _read_quietly(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except CheckpointError:
        return {}
