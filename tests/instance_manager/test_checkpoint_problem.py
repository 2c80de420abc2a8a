"""The manager reports a checkpoint's problem before a start, in the engine's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.gguf_config import ARCHITECTURES as GGUF_ARCHITECTURES
from engine.config import EngineConfig
from engine.errors import EngineError
from engine.launch.preflight import check_checkpoint
from engine.models.architecture import EncoderArchitecture
from engine.models.registry import ARCHITECTURES
from instance_manager.backends import BACKENDS, checkpoint_problem, gguf_problem
from instance_manager.backends.checkpoint import Checkpoint
from instance_manager.backends.checkpoint_problem import problem_of
from tests.broken_checkpoints import BROKEN, DEMO, changed, make_broken
from tests.gguf_files import of_type, put_gguf, put_split, tiny


def engines_problem(directory: Path, params: dict[str, Any]) -> str | None:
    flags = {key: value for key, value in params.items() if key != "tokenizer"}
    try:
        check_checkpoint(EngineConfig(model=directory, **flags), params.get("tokenizer"))
    except EngineError as error:
        return error.message.replace(f"{directory}/", "").replace(str(directory), "it")
    return None


def test_both_know_the_same_architectures() -> None:
    pooling = {name: one for name, one in ARCHITECTURES.items() if one.pools}
    encoders = {name for name, one in pooling.items() if isinstance(one, EncoderArchitecture)}
    assert {name for name, one in ARCHITECTURES.items() if one.generates} == checkpoint_problem.GENERATING
    assert encoders == checkpoint_problem.ENCODERS
    assert pooling.keys() - encoders == checkpoint_problem.DECODERS


@pytest.mark.parametrize("kind", BROKEN)
def test_both_report_the_same_problem_of_an_unsupported_checkpoint(kind: str, tmp_path: Path) -> None:
    directory = make_broken(kind, tmp_path)
    problem = problem_of(directory, {})
    if BROKEN[kind].by_engine_alone:
        assert problem is None
    else:
        assert problem == engines_problem(directory, {}) is not None


@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES, "MambaModel", "GPT2LMHeadModel"}))
@pytest.mark.parametrize("params", [{}, {"runner": "pooling"}, {"convert": "embed"}, {"runner": "generate"}])
def test_no_problem_is_reported_for_a_checkpoint_that_the_engine_accepts(
    architecture: str, params: dict[str, Any], tmp_path: Path
) -> None:
    directory = make_broken("no-architectures", tmp_path)
    changed(architectures=[architecture])(directory)
    problem = problem_of(directory, params)
    if problem is not None:
        assert problem == engines_problem(directory, params)


@pytest.mark.parametrize(
    "params",
    [
        {"tokenizer": DEMO},
        {"tokenizer": DEMO, "hf_overrides": {"architectures": ["LlamaForCausalLM"]}},
        {"hf_overrides": {"architectures": ["LLaDAModelLM"]}},
    ],
)
def test_flags_count_for_both(params: dict[str, Any], tmp_path: Path) -> None:
    directory = make_broken("no-tokenizer", tmp_path)
    assert problem_of(directory, params) == engines_problem(directory, params)


@pytest.mark.parametrize("architecture", ["Cohere2ForCausalLM", "Cohere2Model", "MambaForCausalLM"])
def test_a_family_without_a_class_of_its_own_has_none_to_choose(architecture: str, tmp_path: Path) -> None:
    directory = make_broken("no-architectures", tmp_path)
    changed(architectures=[architecture])(directory)
    problem = problem_of(directory, {"model_impl": "native"})
    assert problem == engines_problem(directory, {"model_impl": "native"})
    assert f"no class of its own for {architecture}. Leave the flag out" in str(problem)


@pytest.mark.parametrize(
    "architecture", ["ViTForImageClassification", "Wav2Vec2ForCTC", "BertForTokenClassification"]
)
@pytest.mark.parametrize("params", [{}, {"runner": "pooling"}])
def test_models_of_other_kinds_are_refused_in_one_short_sentence(
    architecture: str, params: dict[str, Any], tmp_path: Path
) -> None:
    directory = make_broken("no-architectures", tmp_path)
    changed(architectures=[architecture])(directory)
    problem = problem_of(directory, params)
    assert problem == engines_problem(directory, params)
    assert problem is not None
    assert "docs/models.md" in problem
    assert "ForCausalLM" not in problem  # it runs many more than its own classes
    assert len(problem) < 250


def test_a_supported_checkpoint_has_no_problem(tmp_path: Path) -> None:
    assert problem_of(DEMO, {}) is None
    assert problem_of(tmp_path / "gone", {}) is None


def test_a_folder_with_one_gguf_model_is_the_engines_to_judge(tmp_path: Path) -> None:
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "mmproj-m.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert problem_of(tmp_path, {}) is None
    (tmp_path / "n.gguf").write_bytes(b"GGUF")
    assert "name the .gguf file as the model" in str(problem_of(tmp_path, {}))


def test_a_gguf_file_is_the_engines_to_judge(tmp_path: Path) -> None:
    put_gguf(tmp_path, "m.gguf")
    assert problem_of(tmp_path / "m.gguf", {}) is None


def test_architectures_of_gguf_files_are_the_engines(tmp_path: Path) -> None:
    assert GGUF_ARCHITECTURES.keys() == gguf_problem.ARCHITECTURES
    put_gguf(tmp_path, "m.gguf", content=tiny("mamba"))
    problem = problem_of(tmp_path / "m.gguf", {})
    assert problem is not None
    assert problem.startswith(
        "it has a model of architecture 'mamba'; of GGUF files, the embedded engine runs"
    )
    put_gguf(tmp_path, "m.gguf", content=tiny("qwen3moe"))
    assert problem_of(tmp_path / "m.gguf", {}) is None


def test_a_gguf_file_that_no_engine_could_load_has_a_problem(tmp_path: Path) -> None:
    put_gguf(tmp_path, "m.gguf", content=b"GGUF")
    assert "m.gguf isn't a whole GGUF file" in str(problem_of(tmp_path / "m.gguf", {}))
    put_gguf(tmp_path, "lora.gguf", content=of_type("adapter"))
    assert problem_of(tmp_path / "lora.gguf", {}) == "lora.gguf isn't a model's file."
    put_split(tmp_path, "s-Q8_0", 3, missing=(2,))
    problem = problem_of(tmp_path / "s-Q8_0-00001-of-00003.gguf", {})
    assert problem == "it lacks s-Q8_0-00002-of-00003.gguf of its 3 parts: its download isn't finished."


@pytest.mark.parametrize(
    ("kind", "is_known"),
    [
        ("diffuses-text", True),
        ("awq", True),
        ("no-weights", False),
        ("no-tokenizer", False),
        ("nothing", False),
    ],
)
def test_files_that_the_engine_will_download_are_not_missed(
    kind: str, is_known: bool, tmp_path: Path
) -> None:
    """A snapshot in the hub's cache may contain only the files that were requested so far."""
    found = problem_of(make_broken(kind, tmp_path), {}, may_download=True)
    assert (found is not None) == is_known


def test_a_hub_id_is_checked_as_far_as_the_cache_has_it(tmp_path: Path) -> None:
    snapshots = tmp_path / "models--o--n" / "snapshots"
    snapshot = make_broken("no-weights", snapshots)
    (tmp_path / "models--o--n" / "refs").mkdir()
    (tmp_path / "models--o--n" / "refs" / "main").write_text(snapshot.name)
    checkpoint = Checkpoint(BACKENDS["engine"], "o/n", {}, {"HF_HUB_CACHE": str(tmp_path)})
    assert checkpoint.problem is None
    changed(architectures=["LLaDAModelLM"])(snapshot)
    assert "'LLaDAModelLM'" in (checkpoint.problem or "")
