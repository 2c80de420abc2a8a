"""Describes models in Ollama's terms, from their files and from how they are served."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from instance_manager.fleet.model_facts import ModelFacts
from instance_manager.fleet.models import Model

Header = Mapping[str, Any]
UNKNOWN_TIME = "0001-01-01T00:00:00Z"  # Go's zero time, which Ollama's clients know
_MAX_HEADER_BYTES = 100 << 20
_MAX_TEXT_BYTES = 256 << 10  # of a license
_SHORT_TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_BILLION, _MILLION, _THOUSAND = 10**9, 10**6, 10**3

# Numbers of a config.json under the names that GGUF files have for them.
_ARCHITECTURE = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "vocab_size": "vocab_size",
}
# The same numbers of a GGUF model's description.
_HEADER = {
    **{name: name for name in ("block_count", "embedding_length", "feed_forward_length")},
    "head_count": "attention.head_count",
    "head_count_kv": "attention.head_count_kv",
    "vocabulary_size": "vocab_size",
}
# Fields of a generation_config.json as Ollama's options.
_PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}


def moment(seconds: float | None) -> str:
    """A time since the epoch, in RFC 3339."""
    if seconds is None:
        return UNKNOWN_TIME
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def digest_of(model: Model) -> str:
    """Stays the same as long as the model's files do. Not a hash of their contents, which takes minutes."""
    profile = model.profile
    return (
        digest(model.name) if profile is None else digest(profile.model, profile.size_bytes, profile.modified)
    )


def digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def header_of(model: Model) -> Header:
    """What a GGUF file says of the model; empty for others."""
    return {} if model.profile is None else model.profile.description or {}


def details(facts: ModelFacts, header: Header) -> dict[str, Any]:
    """`details` of a list's entry; what is unknown is empty."""
    config = _config(facts)
    count = header.get("num_parameters") or parameter_count(facts)
    stored = str(config.get("torch_dtype") or config.get("dtype") or "")
    return {
        "parent_model": "",
        "format": facts.format or "",
        "family": facts.family or "",
        "families": [facts.family] if facts.family else None,
        "parameter_size": human_number(count) if count else header.get("size_label") or "",
        "quantization_level": facts.quantization or _SHORT_TYPES.get(stored, ""),
    }


def capabilities(facts: ModelFacts) -> list[str]:
    """Ollama's names of what the model can do as it is served."""
    if facts.embeddings:
        return ["embedding"]
    has = {
        "completion": not facts.outputs or "text" in facts.outputs,
        "tools": facts.tools,
        "thinking": facts.reasoning,
        "vision": "image" in facts.inputs,
        "audio": "audio" in facts.inputs,
    }
    return [name for name, can in has.items() if can]


def model_info(facts: ModelFacts, header: Header) -> dict[str, Any]:
    """The architecture's numbers. The context is the one that is served: a longer prompt would be refused."""
    if not facts.family:
        return {}
    config, family = _config(facts), facts.family
    info: dict[str, Any] = {"general.architecture": family}
    if (count := header.get("num_parameters") or parameter_count(facts)) is not None:
        info["general.parameter_count"] = count
    if facts.context_length is not None:
        info[f"{family}.context_length"] = facts.context_length
    of_text = config.get("text_config")
    named = of_text if isinstance(of_text, dict) else config
    numbers = {ours: named.get(theirs) for theirs, ours in _ARCHITECTURE.items()}
    numbers |= {ours: header.get(theirs) for theirs, ours in _HEADER.items() if header}
    return info | {f"{family}.{name}": value for name, value in numbers.items() if type(value) is int}


def parameters(facts: ModelFacts) -> str:
    """The sampling defaults of the checkpoint, a line each, as in a Modelfile."""
    given = {} if facts.path is None else _read_object(facts.path / "generation_config.json")
    lines = {ours: given[theirs] for theirs, ours in _PARAMETERS.items() if _is_number(given.get(theirs))}
    if facts.context_length is not None:
        lines["num_ctx"] = facts.context_length
    return "\n".join(f"{name:30} {value}" for name, value in lines.items())


def license_of(facts: ModelFacts, header: Header) -> str | None:
    """The text of a LICENSE file among the model's files, or the license's name in a GGUF file."""
    if header.get("license"):
        return str(header["license"])
    if facts.path is None or not facts.path.is_dir():
        return None
    for file in sorted(facts.path.glob("LICENSE*")):
        try:
            if file.stat().st_size <= _MAX_TEXT_BYTES:
                return file.read_text("utf-8", "replace")
        except OSError:
            continue
    return None


def parameter_count(facts: ModelFacts) -> int | None:
    """The number of weights; None if unknown, also where quantisation packs several into one element."""
    if facts.path is None or facts.format != "safetensors" or facts.quantization is not None:
        return None
    try:
        files = {str(file): file.stat().st_mtime_ns for file in sorted(facts.path.glob("*.safetensors"))}
    except OSError:
        return None
    return _count(tuple(files.items()))


@lru_cache(maxsize=1024)
def _count(files: tuple[tuple[str, int], ...]) -> int | None:
    """`files` and when they were modified."""
    try:
        return sum(size for file, _ in files for size in _tensor_sizes(Path(file))) or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not a safetensors file despite its name


def _tensor_sizes(file: Path) -> Iterator[int]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= _MAX_HEADER_BYTES:
            raise ValueError("no header")
        header = json.loads(stream.read(length))
    return (math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def human_number(count: int) -> str:
    """As Ollama writes it: 8.0B, 7B, 3.35M, 125K."""
    for unit, letter, places in ((_BILLION, "B", 1), (_MILLION, "M", 2), (_THOUSAND, "K", 0)):
        if count >= unit:
            return f"{count / unit:.{places if count % unit else 0}f}{letter}"
    return str(count)


def _config(facts: ModelFacts) -> Mapping[str, Any]:
    return {} if facts.path is None else _read_object(facts.path / "config.json")


def _read_object(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
