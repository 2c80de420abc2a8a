"""What an engine serves, by its flags, its command line, or its checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from instance_manager.backends.runner_kind import (
    RunnerKind,
    runner_of_checkpoint,
    runner_of_command,
    runner_of_params,
)

G, P = RunnerKind.GENERATE, RunnerKind.POOLING


@pytest.mark.parametrize(
    ("params", "runner"),
    [
        ({}, None),
        ({"runner": "auto", "convert": "auto"}, None),
        ({"runner": "pooling"}, P),
        ({"runner": "generate"}, G),
        ({"convert": "classify"}, P),
        ({"runner": "auto", "convert": "none"}, None),
        ({"task": "embed"}, P),
        ({"task": "score"}, P),
        ({"task": "generate"}, G),
        ({"task": ["odd"], "runner": 3}, None),
    ],
)
def test_flags(params: dict[str, Any], runner: RunnerKind | None) -> None:
    assert runner_of_params(params) is runner


@pytest.mark.parametrize(
    ("command", "runner"),
    [
        ("llama-server --port {port}", None),
        ("llama-server --embedding --pooling mean", P),
        ("llama-server --embeddings", P),
        ("llama-server --reranking", P),
        ("python -m sglang.launch_server --is-embedding", P),
        ("vllm serve m --runner=pooling", P),
        ("vllm serve m --runner pooling", P),
        ("vllm serve m --task embedding", P),
        ("vllm serve m --runner generate", G),
        ("/usr/bin/text-embeddings-router --model-id m", P),
        ("server --embedding=false", None),
        ("server --runner", None),
        ("", None),
    ],
)
def test_command_lines(command: str, runner: RunnerKind | None) -> None:
    assert runner_of_command(command.split()) is runner


@pytest.mark.parametrize(
    ("config", "runner"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, G),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, G),
        *(({"architectures": [name]}, G) for name in ("GPT2LMHeadModel", "QWenLMHeadModel")),
        *(({"architectures": [name]}, G) for name in ("InternVLChatModel", "ChatGLMModel", "AquilaModel")),
        ({"architectures": ["BertModel"]}, P),
        ({"architectures": ["BertForMaskedLM"]}, P),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, P),
        ({"architectures": ["SomethingElse"]}, None),
        ({"architectures": []}, None),
        ({"architectures": [3]}, None),
        ({}, None),
        ([], None),
    ],
)
def test_checkpoints(config: Any, runner: RunnerKind | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert runner_of_checkpoint(tmp_path) is runner


def test_sentence_transformers_files_say_that_it_pools(tmp_path: Path) -> None:
    assert runner_of_checkpoint(tmp_path) is None
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    (tmp_path / "modules.json").write_text("[]")
    assert runner_of_checkpoint(tmp_path) is P


def test_every_model_that_generates_by_the_documentation_gets_its_chats(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| `(\w+)` \| (?:transformers|this engine's class) \| yes", page, re.MULTILINE)
    assert len(names) > 100
    for name in names:
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
        assert runner_of_checkpoint(tmp_path) is G, name
