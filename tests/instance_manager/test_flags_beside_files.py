"""The manager reports flags that don't fit a model, or the files they name, in the engine's words."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.core.adapter import problem_of_name
from engine.errors import EngineError
from engine.launch.launcher import find_checkpoint, read_keywords
from instance_manager.backends.flag_check import problem_of_adapter_name
from instance_manager.backends.flags_beside_files import problem_of_flags
from instance_manager.config import ManagerConfig
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.fleet.startable import problem_of
from tests.broken_checkpoints import DEMO, changed, make_broken

GOOD = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


def adapter(directory: Path, *, weights: str = "adapter_model.safetensors", **config: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps({**GOOD, **config}))
    header = json.dumps({}).encode()
    (directory / weights).write_bytes(len(header).to_bytes(8, "little") + header)
    return directory


def engines_problem(model: Path, params: dict[str, Any]) -> str | None:
    try:
        find_checkpoint(read_keywords(model, params))
    except EngineError as error:
        return error.message
    return None


def a_file(folder: Path) -> Path:
    (folder / "file").write_text("x")
    return folder / "file"


def an_empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "gone", "There is no directory"),
    "a file": (a_file, "is a file; the adapter 'a' is the directory with its adapter_config.json."),
    "empty": (an_empty_folder, "has no adapter_config.json: it is not a LoRA adapter"),
    "rank": (lambda folder: adapter(folder / "a", r=64), "its rank is 64, and --max-lora-rank is 16"),
    "rank of one": (
        lambda folder: adapter(folder / "a", rank_pattern={"q_proj": 10**9}),
        "its rank is 10000",
    ),
    "pickled": (
        lambda folder: adapter(folder / "a", weights="adapter_model.bin"),
        "but pickled weights (adapter_model.bin), which may run code when they are read",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_adapter_that_cannot_be_loaded_is_named(kind: str, tmp_path: Path) -> None:
    make, says = WRONG[kind]
    params = {"lora_modules": [f"a={make(tmp_path)}"]}
    problem = problem_of_flags(DEMO, params, Path())
    assert problem == engines_problem(DEMO, params)
    assert problem is not None
    assert problem.startswith("--lora-modules a: ") and says in problem
    assert problem.count(str(tmp_path)) == 1


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"max_model_len": 10**6}, "exceeds the model's limit: max_position_embeddings is"),
        ({"max_model_len": "1m"}, "--max-model-len 1000000 exceeds"),
        (
            {"enable_lora": True, "model_impl": "transformers"},
            "transformers' own code computes Qwen3ForCausalLM",
        ),
        ({"enable_lora": True, "runner": "pooling"}, "--enable-lora is for models that generate text"),
        (
            {"tensor_parallel_size": 2, "runner": "pooling"},
            "--tensor-parallel-size 2 is for models",
        ),
        ({"tp": "2", "convert": "embed", "enable_lora": True}, "--tensor-parallel-size 2 is for models"),
    ],
)
def test_flags_that_do_not_fit_the_model_are_named(params: dict[str, Any], says: str) -> None:
    problem = problem_of_flags(DEMO, params, Path())
    assert problem == engines_problem(DEMO, params)
    assert problem is not None and says in problem


_DEFAULT = {"rope_type": "default", "rope_theta": 10_000.0}


@pytest.mark.parametrize(
    ("architecture", "rope"),
    [
        ("LlamaForCausalLM", {"rope_parameters": _DEFAULT}),  # as transformers saves it
        ("LlamaForCausalLM", {"rope_parameters": {"rope_theta": 10_000.0}}),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "default"}}),
        (
            "Gemma3ForCausalLM",
            {
                "model_type": "gemma3_text",
                "rope_parameters": {"full_attention": _DEFAULT, "sliding_attention": _DEFAULT},
            },
        ),
    ],
)
def test_a_context_beyond_the_models_is_named_where_its_rope_is_not_scaled(
    architecture: str, rope: dict[str, Any], tmp_path: Path
) -> None:
    directory = make_broken("no-architectures", tmp_path)
    changed(architectures=[architecture], sliding_window=64, **rope)(directory)
    problem = problem_of_flags(directory, {"max_model_len": 10**6}, Path())
    assert problem == engines_problem(directory, {"max_model_len": 10**6})
    assert problem is not None and "--max-model-len 1000000 exceeds the model's limit" in problem


@pytest.mark.parametrize("architecture", ["BertModel", "Qwen3ForSequenceClassification", "Cohere2Model"])
def test_a_model_without_a_language_head_that_is_to_generate_is_named(
    architecture: str, tmp_path: Path
) -> None:
    directory = make_broken("no-architectures", tmp_path)
    changed(architectures=[architecture])(directory)
    problem = problem_of_flags(directory, {"runner": "generate"}, Path())
    assert problem == engines_problem(directory, {"runner": "generate"})
    assert problem == f"{architecture} generates no text: it needs --runner pooling."


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "Qwen3ForCausalLM", "FooForCausalLM"])
def test_a_model_with_a_language_head_may_generate(architecture: str, tmp_path: Path) -> None:
    directory = make_broken("no-architectures", tmp_path)
    changed(architectures=[architecture])(directory)
    params = {"runner": "generate", "tensor_parallel_size": 2}
    assert problem_of_flags(directory, params, Path()) is None


def test_adapters_of_one_name_and_of_the_models_name_are_named(tmp_path: Path) -> None:
    path = adapter(tmp_path / "a")
    twice = {"lora_modules": [f"a={path}", {"name": "a", "path": str(path)}]}
    own = {"lora_modules": [f"a={path}"], "served_model_name": ["m", "a"]}
    for params, says in ((twice, "has already been loaded"), (own, "is a name of the served model")):
        problem = problem_of_flags(DEMO, params, Path())
        assert problem == engines_problem(DEMO, params)
        assert problem is not None and says in problem


def test_flags_that_fit_are_no_problem(tmp_path: Path) -> None:
    path = adapter(tmp_path / "a")
    for params in (
        {"lora_modules": [f"a={path}"], "max_lora_rank": 4},
        {"enable_lora": True, "max_model_len": 64},
        {"max_model_len": "auto"},
        {},
    ):
        assert problem_of_flags(DEMO, params, Path()) is None
        assert engines_problem(DEMO, params) is None
    scaled = make_broken("no-architectures", tmp_path)
    changed(architectures=["LlamaForCausalLM"], rope_scaling={"rope_type": "dynamic", "factor": 9.0})(scaled)
    assert problem_of_flags(scaled, {"max_model_len": 4096}, Path()) is None
    assert problem_of_flags(None, {"max_model_len": 10**9}, Path()) is None


def test_a_config_beside_a_gguf_file_says_nothing_of_the_files_model(tmp_path: Path) -> None:
    directory = make_broken("no-architectures", tmp_path)
    changed(architectures=["LlamaForCausalLM"], max_position_embeddings=64)(directory)
    params = {"max_model_len": 128}
    assert "exceeds" in str(problem_of_flags(directory, params, Path()))
    assert problem_of_flags(directory, {**params, "load_format": "gguf"}, Path()) is None


def test_a_limit_that_is_no_number_is_the_engines_to_report(tmp_path: Path) -> None:
    directory = make_broken("no-architectures", tmp_path)
    changed(architectures=["LlamaForCausalLM"], max_position_embeddings=True)(directory)
    assert problem_of_flags(directory, {"max_model_len": 128}, Path()) is None
    assert "max_position_embeddings is True" in str(engines_problem(directory, {"max_model_len": 128}))


def test_an_adapter_of_another_model_is_found_before_the_weights_are_read(tmp_path: Path) -> None:
    path = adapter(tmp_path / "a")
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.weight"
    for layer, width, says in ((0, 7, "is [4, 7] instead of [4, "), (999, 7, "changes model.layers.999")):
        tensor = {"dtype": "F32", "shape": [4, width], "data_offsets": [0, 16 * width]}
        header = json.dumps({name.format(layer): tensor}).encode()
        content = len(header).to_bytes(8, "little") + header + bytes(16 * width)
        (path / "adapter_model.safetensors").write_bytes(content)
        problem = engines_problem(DEMO, {"lora_modules": [f"a={path}"]})
        assert problem is not None and says in problem


def test_the_engine_refuses_them_without_torch(tmp_path: Path) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "engine", "--port", "0", str(DEMO)]
    words += ["--lora-modules", f"a={tmp_path / 'gone'}"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "torch" not in ended.stderr
    *_, last = (line for line in ended.stderr.splitlines() if not line.startswith("import time:"))
    assert "bad arguments: --lora-modules a: There is no directory" in last


def test_a_models_entry_is_listed_with_the_problem() -> None:
    profile = ModelProfile("m", str(DEMO), "engine", params={"lora_modules": ["a=/gone"]})
    problem = problem_of(profile, ManagerConfig(), ())
    assert problem == "--lora-modules a: There is no directory '/gone' with the adapter 'a'."


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("a\nb", "has line ends"),
        ("a\x00", "has line ends, control characters"),
        ("a\u202eb", "has line ends, control characters"),
        (" a", "spaces at an end"),
        ("a:b", "has a colon"),
        ("../a", "reads like a path"),
        ("a/../b", "reads like a path"),
        ("/a", "reads like a path"),
        ("a\\..\\b", "reads like a path"),
        ("x" * 201, "has 201 characters; 200 are possible"),
        ("sql", None),
        ("org/sql-v1.2", None),
        ("Größe 2", None),
    ],
)
def test_an_adapters_name_is_checked_alike_everywhere(name: str, says: str | None) -> None:
    problem = problem_of_name(name)
    assert problem == problem_of_adapter_name(name)
    assert (problem is None) == (says is None)
    assert (says or "") in (problem or "")
