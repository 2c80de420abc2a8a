"""A GGUF file is a model: its tokens, template and answers are those of the same model saved plainly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import save_file

from engine.checkpoint.layout import unpacked_gguf
from engine.errors import CheckpointError, ConfigError, UnsupportedModel
from engine.models.quantised.checkpoint import open_checkpoint
from engine.models.quantised.gguf_directory import as_directory
from engine.offline.llm import LLM
from engine.offline.params import SamplingParams
from tests.engine.quantised.gguf_models import convert
from tests.engine.quantised.test_gguf_tokenizer import DEMO, byte_level
from tests.engine.test_generation import core_of, greedy, run
from tests.engine.tiny_models import prompt_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "berth" / "gguf"


@pytest.fixture
def demo(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy2(converted / "demo.gguf", tmp_path))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with its tokenizer and template, quantised to 8 bits; and what it stands for."""
    tmp_path = tmp_path_factory.mktemp("converted")
    template = {"tokenizer.chat_template": (DEMO / "chat_template.jinja").read_text()}
    plain = convert(DEMO, tmp_path / "demo.gguf", quantised=True, tokenizer={**byte_level(), **template})
    (tmp_path / "plain").mkdir()
    save_file(plain, tmp_path / "plain" / "model.safetensors")
    for path in DEMO.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path / "plain")
    (tmp_path / "plain" / "generation_config.json").unlink()
    return tmp_path


def test_a_chat_with_a_gguf_file(converted: Path) -> None:
    conversation = [{"role": "user", "content": "Tell me a story about a fox."}]
    answers = []
    for model in (converted / "demo.gguf", converted / "plain"):
        with LLM(model=str(model), dtype="float32", max_model_len=256) as llm:
            (answer,) = llm.chat(conversation, SamplingParams(temperature=0.0, max_tokens=24))
            answers.append((answer.prompt_token_ids, answer.outputs[0].token_ids, answer.outputs[0].text))
    assert answers[0] == answers[1]
    assert len(answers[0][1]) > 1


@pytest.mark.parametrize("name", ["llama-untied-bias", "qwen3-tied"])
def test_greedy_tokens_are_those_of_the_model_that_was_converted(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """With float32 in the file, every weight is, too: rows of queries and keys are in order again."""
    source = checkpoint(name)
    convert(source, tmp_path / "m.gguf", quantised=False, tokenizer=byte_level())
    prompt = [greedy("r", prompt_of(20))]
    assert run(core_of(tmp_path / "m.gguf", max_model_len=64), prompt) == run(
        core_of(source, max_model_len=64), prompt
    )
    with open_checkpoint(source) as one, open_checkpoint(as_directory(tmp_path / "m.gguf")) as other:
        assert one.names == other.names
        assert all(one.tensor(tensor).equal(other.tensor(tensor)) for tensor in one.names)


def test_the_directory_is_made_once_and_again_for_another_file(demo: Path, cache: Path) -> None:
    directory = as_directory(demo)
    assert directory.parent == cache
    assert unpacked_gguf(directory) == [demo]
    assert as_directory(demo) == as_directory(directory) == directory
    (directory / "mark").touch()
    assert (as_directory(demo) / "mark").exists()
    demo.write_bytes(demo.read_bytes() + bytes(32))
    assert as_directory(demo) != directory
    assert len(list(cache.iterdir())) == 2


def test_a_tokenizer_that_is_given_is_used_and_that_of_the_file_not_read(tmp_path: Path) -> None:
    convert(DEMO, tmp_path / "m.gguf", quantised=True, tokenizer=byte_level(pre="new-bpe"))
    with pytest.raises(UnsupportedModel, match="splits text as 'new-bpe'"):
        as_directory(tmp_path / "m.gguf")
    with LLM(model=str(tmp_path / "m.gguf"), tokenizer=str(DEMO), max_model_len=64) as llm:
        assert llm.generate("A fox", SamplingParams(max_tokens=2))[0].outputs[0].token_ids


def test_load_format_gguf_takes_the_only_model_of_a_directory(demo: Path) -> None:
    folder = demo.parent / "folder"
    folder.mkdir()
    with pytest.raises(ConfigError, match="which has none"):
        as_directory(folder, load_format="gguf")
    shutil.copy(demo, folder / "a.gguf")
    assert unpacked_gguf(as_directory(folder, load_format="gguf")) == [folder / "a.gguf"]
    shutil.copy(demo, folder / "b.gguf")
    with pytest.raises(ConfigError, match=r"which has a\.gguf, b\.gguf"):
        as_directory(folder, load_format="gguf")
    assert as_directory(folder) == folder


def test_a_folder_with_one_model_is_that_model(demo: Path) -> None:
    """In one file or several, beside a projector of images; a config.json makes it another kind of folder."""
    folder = demo.parent / "folder"
    folder.mkdir()
    shutil.copy(demo, folder / "a-00001-of-00001.gguf")
    (folder / "mmproj-a.gguf").write_bytes(b"GGUF")
    assert unpacked_gguf(as_directory(folder)) == [folder / "a-00001-of-00001.gguf"]
    (folder / "config.json").write_text("{}")
    assert as_directory(folder) == folder


def test_a_file_that_changed_since_its_header_was_read_is_refused(demo: Path) -> None:
    directory = as_directory(demo)
    demo.write_bytes(demo.read_bytes() + bytes(32))
    changed = pytest.raises(CheckpointError, match=r"\.gguf has changed since .* start it again")
    with changed, open_checkpoint(directory):
        pass
    demo.unlink()
    with pytest.raises(CheckpointError, match="can't be read: No such file"), open_checkpoint(directory):
        pass


def test_two_starts_at_once_share_one_directory(demo: Path, cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(as_directory, [demo] * 4))
    assert list(cache.iterdir()) == list(found)


def test_other_formats_contradict_a_gguf_file(demo: Path) -> None:
    with pytest.raises(ConfigError, match="--load-format safetensors contradicts"):
        as_directory(demo, load_format="safetensors")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="is not a valid GGUF file"):
        as_directory(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(b"\xff\xfe\x00\x01" * 8)
    with pytest.raises(CheckpointError, match=r"file: it doesn't start with GGUF's mark\.$"):
        as_directory(tmp_path / "m.gguf")


def test_a_cache_that_cannot_be_written_is_named(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (demo.parent / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(demo.parent / "file"))
    with pytest.raises(CheckpointError, match=r"can't be unpacked into .*XDG_CACHE_HOME names another place"):
        as_directory(demo)


def test_the_configuration_is_readable(demo: Path) -> None:
    config = json.loads((as_directory(demo) / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]


def test_without_a_place_for_the_directory_a_place_can_be_named(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"Not a directory.*XDG_CACHE_HOME names another place"):
        as_directory(demo)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(CheckpointError, match=r"home directory.*XDG_CACHE_HOME names another place"):
        as_directory(demo)
