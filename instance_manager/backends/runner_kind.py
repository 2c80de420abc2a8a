"""Whether an engine generates or pools (embeds, classifies, scores).

An engine does one of the two and can't serve requests for the other. Determined from its flags, else from the
checkpoint, as the engines themselves do; None if neither tells: then it gets any request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from instance_manager.gguf.errors import GgufError
from instance_manager.gguf.headers import header_at


class RunnerKind(StrEnum):
    """The values are those of vLLM's --runner."""

    GENERATE = "generate"
    POOLING = "pooling"


# vLLM had --task before --runner and --convert.
_TASKS = {"generate": RunnerKind.GENERATE, "transcription": RunnerKind.GENERATE} | dict.fromkeys(
    ("embed", "embedding", "classify", "score", "reward", "token_embed", "token_classify", "pooling"),
    RunnerKind.POOLING,
)
_CONVERSIONS = frozenset({"embed", "classify", "reward"})
# Switches of llama.cpp, SGLang and others that restrict the server to pooling.
_POOLING_SWITCHES = frozenset({"--embedding", "--embeddings", "--rerank", "--reranking", "--is-embedding"})
_POOLING_PROGRAMS = frozenset({"text-embeddings-router", "infinity_emb"})
# Not every name that ends in "Model" is one without a head: GPT-2's, InternVL's, and two that vLLM runs.
_GENERATING = (
    *("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "ChatModel"),
    *("ChatGLMModel", "AquilaModel"),
)
_POOLING_HEADS = ("ForSequenceClassification", "ForMaskedLM", "ForTokenClassification")


def can_serve(runner: RunnerKind | None, need: RunnerKind | None) -> bool:
    """Whether an engine with this runner serves a request with this need."""
    return need is None or runner is None or runner is need


def runner_of_params(params: Mapping[str, Any]) -> RunnerKind | None:
    """From flags in snake_case."""
    runner, convert = params.get("runner"), params.get("convert")
    if runner in tuple(RunnerKind):
        return RunnerKind(runner)
    if isinstance(convert, str) and convert in _CONVERSIONS:
        return RunnerKind.POOLING
    task = params.get("task")
    return _TASKS.get(task) if isinstance(task, str) else None


def runner_of_command(command: Sequence[str]) -> RunnerKind | None:
    """From any server's command line."""
    if command and Path(command[0]).name in _POOLING_PROGRAMS:
        return RunnerKind.POOLING
    params: dict[str, Any] = {}
    for index, word in enumerate(command):
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            continue
        if name in _POOLING_SWITCHES and (not equals or value.lower() not in ("false", "0")):
            return RunnerKind.POOLING
        follows = command[index + 1] if index + 1 < len(command) else ""
        params[name[2:].replace("-", "_")] = value if equals else follows
    return runner_of_params(params)


def runner_of_checkpoint(folder: Path) -> RunnerKind | None:
    """From a checkpoint's files; None if they are missing or don't tell. Blocks for a moment.

    `folder`: may be a GGUF file.
    """
    if folder.suffix == ".gguf":
        header = header_at(folder)
        if isinstance(header, GgufError):
            return None
        return RunnerKind.GENERATE if header.generates else RunnerKind.POOLING
    try:
        config = json.loads((folder / "config.json").read_bytes())
        (architecture,) = config["architectures"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(architecture, str):
        return None
    # Embedding models may have a generating architecture: sentence-transformers' files identify them.
    if (folder / "modules.json").is_file() or architecture.endswith(_POOLING_HEADS):
        return RunnerKind.POOLING
    if architecture.endswith(_GENERATING):
        return RunnerKind.GENERATE
    return RunnerKind.POOLING if architecture.endswith("Model") else None
