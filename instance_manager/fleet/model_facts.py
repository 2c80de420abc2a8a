"""What a model's files tell of it: modalities, chat template, context length. Weights are not read.

Nothing is guessed: what the files don't tell is None or empty, and left out of all descriptions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instance_manager.gguf.errors import GgufError
from instance_manager.gguf.header import read_chat_template

_MAX_BYTES = 4 << 20  # of a file that is read
_TOOLS = re.compile(r"\btools\b")
_REASONING = re.compile(r"enable_thinking|reasoning_content|reasoning_effort|<think>")
_SENSES = {"vision_config": "image", "audio_config": "audio"}  # parts of a config.json
_QUANTIZATION = re.compile(r"[-.]((?:I?Q|TQ)\d\w*|F16|BF16|F32|MXFP4\w*)(?:-\d{5}-of-\d{5})?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """None and empty = unknown."""

    path: Path | None = None  # its files on this machine
    is_in_cache: bool = False  # of the hub
    format: str | None = None  # "safetensors" or "gguf"
    family: str | None = None  # config.json's `model_type`
    quantization: str | None = None
    context_length: int | None = None
    inputs: tuple[str, ...] = ()  # modalities: "text", "image", "audio"
    outputs: tuple[str, ...] = ()
    tools: bool | None = None
    reasoning: bool | None = None
    embeddings: bool | None = None
    rerank: bool | None = None
    has_one_label: bool | None = None  # of a classifier: then it scores pairs, as rerankers do
    vocabulary_size: int | None = None
    hidden_size: int | None = None
    chat_template: str | None = None


def read_facts(path: Path) -> ModelFacts:
    """Of the files at `path`: a folder, or a GGUF file."""
    gguf = path if path.suffix == ".gguf" else next(iter(sorted(path.glob("*.gguf"))), None)
    config = {} if path.is_file() else _read_json(path / "config.json")
    if gguf is not None and not config:
        found = _QUANTIZATION.search(gguf.stem)
        quantization = found[1].upper() if found else None
        template = _gguf_template(gguf)
        return ModelFacts(path, format="gguf", quantization=quantization, **_by_template(template))
    text = config.get("text_config")
    text = text if isinstance(text, dict) else config
    senses = [kind for part, kind in _SENSES.items() if isinstance(config.get(part), dict)]
    return ModelFacts(
        path=path,
        format="safetensors" if next(path.glob("*.safetensors"), None) else None,
        family=_text(config.get("model_type")),
        quantization=_text(_part(config, "quantization_config").get("quant_method")),
        context_length=_number(text.get("max_position_embeddings")),
        inputs=("text", *senses) if config else (),
        has_one_label=_has_one_label(config),
        vocabulary_size=_number(text.get("vocab_size")),
        hidden_size=_number(text.get("hidden_size")),
        **_by_template(_chat_template(path)),
    )


def with_description(facts: ModelFacts, header: Mapping[str, Any]) -> ModelFacts:
    """The facts of a GGUF model, with what its header says; a projector may be for images or for sound."""
    pooling = header.get("pooling")
    return replace(
        facts,
        format="gguf",
        family=_text(header.get("architecture")),
        quantization=_text(header.get("quantization")) or facts.quantization,
        context_length=_number(header.get("context_length")),
        inputs=() if header.get("mmproj") else ("text",),
        embeddings=None if pooling is None else pooling != "rank",
        rerank=None if pooling is None else pooling == "rank",
        vocabulary_size=_number(header.get("vocabulary_size")),
        hidden_size=_number(header.get("embedding_length")),
    )


def _by_template(template: str | None) -> dict[str, Any]:
    """What a chat template, in the files of any format, tells of its model."""
    if template is None:
        return {}
    return {
        "tools": _TOOLS.search(template) is not None,
        "reasoning": True if _REASONING.search(template) else None,
        "chat_template": template,
    }


def _gguf_template(path: Path) -> str | None:
    try:
        return read_chat_template(path)
    except GgufError:
        return None


def _chat_template(path: Path) -> str | None:
    """As transformers finds it: a file of its own, else a string in the tokenizer's configuration."""
    content = _read(path / "chat_template.jinja")
    if content is not None:
        return content.decode("utf-8", "replace")
    return _text(_read_json(path / "tokenizer_config.json").get("chat_template"))


def _has_one_label(config: Mapping[str, Any]) -> bool | None:
    """None unless it is a classifier."""
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not str(architectures[:1]).endswith(
        "ForSequenceClassification']"
    ):
        return None
    labels = config.get("id2label")
    return len(labels) == 1 if isinstance(labels, dict) else config.get("num_labels") == 1


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(_read(path) or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _read(path: Path) -> bytes | None:
    """None if it is missing, unreadable or too large."""
    try:
        return path.read_bytes() if path.stat().st_size <= _MAX_BYTES else None
    except OSError:
        return None
