"""What a model's files, its engine and its flags tell of what it can do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from instance_manager.config import ManagerConfig
from instance_manager.fleet.facts_reader import FactsReader
from instance_manager.fleet.model_facts import ModelFacts, read_facts, with_description
from instance_manager.fleet.models import Model
from instance_manager.fleet.profiles import ModelProfile
from tests.engine.quantised.gguf_writer import gguf
from tests.gguf_files import metadata

DECODER = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "max_position_embeddings": 4096,
    "vocab_size": 100,
    "hidden_size": 8,
}
SEES = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "text_config": {"max_position_embeddings": 8192, "vocab_size": 7},
    "vision_config": {},
}
RANKS = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
TOOLS = "{% if tools %}{{ tools }}{% endif %}{{ messages }}"


def write(folder: Path, config: dict[str, Any] | None = None, template: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def served(
    folder: Path, engine: str = "engine", *, options: dict[str, Any] | None = None, **params: Any
) -> ModelFacts:
    config = ManagerConfig(log_dir=folder, model_dirs=(), options=options or {})
    profile = ModelProfile(name="one", model=str(folder), engine=engine, params=params)
    return FactsReader(config).of(Model("one", profile, 0, lambda: 0.0))


def test_a_decoder(tmp_path: Path) -> None:
    facts = served(write(tmp_path / "m", DECODER, TOOLS))
    assert (facts.family, facts.context_length, facts.vocabulary_size, facts.hidden_size) == (
        "qwen3",
        4096,
        100,
        8,
    )
    assert (facts.inputs, facts.outputs) == (("text",), ("text",))
    assert (facts.tools, facts.reasoning, facts.embeddings, facts.rerank) == (True, None, False, False)
    assert facts.is_in_cache is False
    assert served(tmp_path / "m", max_model_len=100).context_length == 100, "its limit here"


@pytest.mark.parametrize(
    ("template", "tools", "reasoning"),
    [
        (None, None, None),
        ("{{ messages }}", False, None),
        (TOOLS, True, None),
        ("{% if enable_thinking %}<think>{% endif %}", False, True),
        ("{{ message.reasoning_content }}{{ tools }}", True, True),
        ("{{ mytools }}", False, None),
    ],
)
def test_the_chat_template_tells_of_tools_and_reasoning(
    tmp_path: Path, template: str | None, tools: bool | None, reasoning: bool | None
) -> None:
    facts = read_facts(write(tmp_path / "m", DECODER, template))
    assert (facts.tools, facts.reasoning) == (tools, reasoning)


def test_a_template_in_a_file_of_its_own_wins(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", DECODER, TOOLS)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert read_facts(folder).tools is False


def test_images_are_for_engines_that_take_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", SEES, TOOLS)
    assert read_facts(folder).inputs == ("text", "image")
    embedded = served(folder)
    assert (embedded.inputs, embedded.context_length) == (("text",), 8192)
    options = {"vllm_python": os.devnull}
    assert served(folder, "vllm", options=options).inputs == ("text", "image")


def test_vllm_calls_tools_only_if_told_to(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", DECODER, TOOLS)
    options = {"vllm_python": os.devnull}
    assert served(folder, "vllm", options=options).tools is False
    assert served(folder, "vllm", options=options, enable_auto_tool_choice=True).tools is True


def test_a_reranker_and_an_embedding_model(tmp_path: Path) -> None:
    ranks = served(write(tmp_path / "ranks", RANKS))
    assert (ranks.rerank, ranks.embeddings, ranks.tools) == (True, False, False)
    labels = RANKS | {"id2label": {"0": "a", "1": "b"}}
    sorts = served(write(tmp_path / "sorts", labels))
    assert (sorts.rerank, sorts.embeddings) == (False, False)
    embeds = served(write(tmp_path / "embeds", {"architectures": ["BertModel"]}))
    assert (embeds.rerank, embeds.embeddings, embeds.outputs) == (False, True, ("embeddings",))


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("qwen3-0.6b-q8_0.gguf", "Q8_0"),
        ("Model.Q4_K_M.gguf", "Q4_K_M"),
        ("model-UD-IQ1_S-00001-of-00003.gguf", "IQ1_S"),
        ("model-BF16.gguf", "BF16"),
        ("model.gguf", None),
    ],
)
def test_a_gguf_files_name_tells_its_quantization(
    tmp_path: Path, name: str, quantization: str | None
) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    for path in (tmp_path, tmp_path / name):
        facts = read_facts(path)
        assert (facts.format, facts.quantization) == ("gguf", quantization)


def test_files_are_read_again_when_they_change(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", DECODER)
    profile = ModelProfile(name="one", model=str(folder), engine="engine")
    reader, model = FactsReader(ManagerConfig(log_dir=tmp_path)), Model("one", profile, 0, lambda: 0.0)
    assert reader.of(model).context_length == 4096
    write(folder, DECODER | {"max_position_embeddings": 1})
    os.utime(folder / "config.json", ns=(1, 1))
    reader.read([profile])
    assert reader.of(model).context_length == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"architectures": 3, "text_config": 1}', b"\xff"])
def test_broken_files_tell_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    facts = served(tmp_path)
    assert (facts.context_length, facts.tools, facts.family) == (None, None, None)


def test_an_unknown_engine_and_missing_files_tell_nothing(tmp_path: Path) -> None:
    assert served(tmp_path / "none") == ModelFacts()
    assert served(write(tmp_path / "m", DECODER), "no-such-engine") == ModelFacts()


HEADER = {
    "architecture": "qwen3",
    "quantization": "Q4_K_M",
    "context_length": 40960,
    "vocabulary_size": 9,
    "embedding_length": 4,
    "pooling": None,
    "mmproj": None,
}


@pytest.mark.parametrize(
    ("header", "embeddings", "rerank"),
    [
        (HEADER, None, None),
        (HEADER | {"pooling": "mean"}, True, False),
        (HEADER | {"pooling": "rank"}, False, True),
    ],
)
def test_a_gguf_header_tells_more(
    tmp_path: Path, header: dict[str, Any], embeddings: bool | None, rerank: bool | None
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    profile = ModelProfile(name="one", model=str(tmp_path), engine="engine", description=header)
    facts = FactsReader(ManagerConfig(log_dir=tmp_path)).of(Model("one", profile, 0, lambda: 0.0))
    assert (facts.format, facts.family, facts.quantization) == ("gguf", "qwen3", "Q4_K_M")
    assert (facts.context_length, facts.vocabulary_size, facts.hidden_size) == (40960, 9, 4)
    assert (facts.embeddings, facts.rerank, facts.inputs) == (embeddings, rerank, ("text",))
    assert with_description(facts, HEADER | {"mmproj": "mmproj.gguf"}).inputs == ()


def test_a_gguf_files_chat_template_tells_of_tools_and_reasoning(tmp_path: Path) -> None:
    template = "{% if tools %}{{ tools }}{% endif %}<think>"
    (tmp_path / "m.gguf").write_bytes(gguf(metadata() | {"tokenizer.chat_template": template}, {}))
    facts = read_facts(tmp_path / "m.gguf")
    assert (facts.tools, facts.reasoning, facts.chat_template) == (True, True, template)


def test_an_equal_profile_of_a_later_scan_is_the_same(tmp_path: Path) -> None:
    """A fleet keeps the profiles that a scan has not changed."""
    folder = write(tmp_path / "m", DECODER)
    first, second = (ModelProfile(name="one", model=str(folder), engine="engine") for _ in range(2))
    reader, model = FactsReader(ManagerConfig(log_dir=tmp_path)), Model("one", first, 0, lambda: 0.0)
    reader.read([second])
    (folder / "config.json").unlink()
    assert reader.of(model).context_length == 4096, "as read"
