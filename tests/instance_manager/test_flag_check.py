"""The manager checks flags as the engine does, before anything is started for them."""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from docs.engine_flags import FILE, render
from engine.errors import ConfigError
from engine.launch import flags
from engine.launch.flag_parser import FOREIGN, build_parser
from engine.launch.flags import parse_flags
from instance_manager.backends import plan_launch
from instance_manager.backends.flag_check import vllm_version, with_switches
from instance_manager.backends.params import to_flags
from instance_manager.backends.vllm_like import OWNED_PARAMS
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec
from instance_manager.types import InstanceSpec

PARSER = cache(build_parser)
FLAGS: dict[str, Any] = json.loads(FILE.read_text())["flags"]
ROOT = FILE.parents[2]
VALUES: list[Any] = [
    *(True, False, 0, 1, -1, 4096, 0.5, 1.0, 1.5, 2**40, "", "abc", "auto", "none", "4k", "4K", "1.5K", "-1"),
    *(
        "float16",
        "FLOAT16",
        "INFO",
        "info",
        "generate",
        "classify",
        "string",
        "warn",
        "vllm",
        "true",
        "false",
    ),
    *(
        "{}",
        "[]",
        '{"a": 1}',
        "{{ x }}",
        "env.example",
        "/no/such/file",
        "a b",
        "1e3",
        "inf",
        "nan",
        "safetensors",
    ),
    *(
        {},
        {"a": 1},
        [],
        ["a"],
        ["a", "b"],
        [1],
        [1, 2],
        [{"a": 1}],
        "fcfs",
        "assistant",
        "hf",
        "0.0",
        0.0,
        [True],
    ),
]


@pytest.fixture(autouse=True)
def _one_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "build_parser", PARSER)


def refusal(params: dict[str, Any], engine: str = "engine", **config: Any) -> InvalidSpec | None:
    try:
        plan_launch(InstanceSpec("acme/model", engine, params=params), ManagerConfig(**config))
    except InvalidSpec as error:
        return error
    return None


def engine_takes(params: dict[str, Any]) -> bool:
    argv = to_flags(with_switches(params), lambda _: True)
    try:
        parse_flags([*argv, "--model", "m"], {})
    except ConfigError:
        return False
    return True


def test_the_table_is_the_engines_own() -> None:
    assert render() == FILE.read_text(), "engine_flags.json is old: run `make docs`"


def flags_to_try() -> tuple[list[str], list[str]]:
    """The engine's own flags and one of each kind of the others; the rest. Not those that Berth sets."""
    # What Berth asks of a name that is served is more.
    names = FLAGS.keys() - {one.replace("_", "-") for one in OWNED_PARAMS} - {"served-model-name"}
    foreign = {action.dest.removeprefix(FOREIGN) for action in PARSER()._actions if FOREIGN in action.dest}
    first_of_kind = {json.dumps(FLAGS[name]): name for name in sorted(names & foreign, reverse=True)}
    typical = (names - foreign) | set(first_of_kind.values())
    return sorted(typical), sorted(names - typical)


TYPICAL, OTHERS = flags_to_try()


@pytest.mark.parametrize(
    "names", [TYPICAL, pytest.param(OTHERS, marks=pytest.mark.exhaustive)], ids=["typical", "others"]
)
def test_exactly_the_flags_that_the_engine_refuses_are_refused(
    names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # where the engine runs
    for name, value in product(names, VALUES):
        params = {name.replace("-", "_"): value}
        assert (refusal(params) is None) == engine_takes(params), f"{params}: {refusal(params)}"


@pytest.mark.parametrize(
    ("params", "parts"),
    [
        ({"no_such_flag": 3}, ["params.no_such_flag=3", "no such flag"]),
        ({"max_model_length": 3}, ["params.max_model_length=3", "did you mean max_model_len?"]),
        ({"max-model-len": "abc"}, ["params.max_model_len=abc", "whole number", "4k"]),
        ({"dtype": "float17"}, ["params.dtype=float17", "bfloat16"]),
        ({"gpu_memory_utilization": 1.5}, ["params.gpu_memory_utilization=1.5", "at most 1"]),
        ({"enable_prefix_caching": "yes"}, ["params.enable_prefix_caching=yes", "true or false"]),
        ({"tensor_parallel_size": 0}, ["params.tensor_parallel_size=0", "whole number"]),
        ({"pipeline_parallel_size": 2}, ["params.pipeline_parallel_size=2", "devices", "possible: 1"]),
        ({"chat_template": "/nowhere.jinja"}, ["params.chat_template=/nowhere.jinja", "no such file"]),
        ({"hf_overrides": [1]}, ["params.hf_overrides=[1]", "JSON object"]),
    ],
)
def test_a_refusal_names_the_parameter_its_value_and_what_is_allowed(
    params: dict[str, Any], parts: list[str]
) -> None:
    error = refusal(params)
    assert error is not None and error.param == "params." + next(iter(params)).replace("-", "_")
    for part in parts:
        assert part in str(error)


def test_a_secret_is_not_shown() -> None:
    error = refusal({"secret_tokn_key": "sk-1"})
    assert error is not None and "sk-1" not in str(error)


def test_a_parameter_from_settings_is_reported_as_such() -> None:
    error = refusal({}, default_params={"max_model_len": "abc"})
    assert error is not None and "VLLM_CONFIG" in str(error)
    error = refusal({"max_model_len": "abc"}, default_params={"max_model_len": 1})
    assert error is not None and "VLLM_CONFIG" not in str(error)


@pytest.mark.parametrize("name", ["port", "model", "api_key"])
def test_parameters_that_berth_sets_can_not_be_set_for_all_engines_either(name: str) -> None:
    error = refusal({}, default_params={name: "x"})
    assert error is not None and "Berth sets it" in str(error) and "VLLM_CONFIG" in str(error)


def vllm(folder: Path, version: str | None) -> str:
    """An interpreter in an environment with this vLLM."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    if version is not None:
        (folder / f"lib/python3.12/site-packages/vllm-{version}.dist-info").mkdir(parents=True)
    return str(python)


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1.dev3+gabc", "0.31.0", None])
def test_names_are_checked_for_a_vllm_version_with_known_flags(tmp_path: Path, version: str | None) -> None:
    python = vllm(tmp_path, version)
    assert vllm_version(python) == version
    good = {
        "max_num_seqs": 8,
        "no_enable_prefix_caching": True,
        "swa_bounded_replay": False,
        "lora_modules": ["a"],
    }
    assert refusal(good, "vllm", options={"vllm_python": python}) is None
    error = refusal({"max_num_seq": 8}, "vllm", options={"vllm_python": python})
    assert (error is not None) == bool(version and version.startswith("0.32."))
    assert error is None or "did you mean max_num_seqs?" in str(error)


def test_numbers_are_checked_for_any_version_of_vllm(tmp_path: Path) -> None:
    error = refusal({"max_model_len": "abc"}, "vllm", options={"vllm_python": vllm(tmp_path, None)})
    assert error is not None and "max_model_len=abc" in str(error)


@pytest.mark.parametrize("engine", ["engine", "vllm"])
def test_a_quoted_boolean_of_a_switch_is_taken_as_one(engine: str, tmp_path: Path) -> None:
    config = ManagerConfig(options={"vllm_python": vllm(tmp_path, "0.32.0")})

    def argv(**params: Any) -> list[str]:
        return plan_launch(InstanceSpec("acme/model", engine, params=params), config).argv("h", 1)

    for word in ("true", "True", "TRUE"):
        assert argv(enable_lora=word) == argv(enable_lora=True)
    for word in ("false", "False"):
        assert argv(enable_lora=word) == argv(enable_lora=False)
    assert argv(enable_sleep_mode="false") == argv(enable_sleep_mode=False), "and counts as one for Berth"
    assert "true" in argv(served_model_name="true"), "where the flag is no switch, it is a word"
    if engine == "vllm":
        assert argv(no_enable_prefix_caching="true") == argv(no_enable_prefix_caching=True)


@pytest.mark.parametrize("engine", ["engine", "vllm"])
@pytest.mark.parametrize("value", ["yes", "no", "on", 1, 0, "1", ""])
def test_another_value_of_a_switch_is_refused_with_what_to_write(
    engine: str, value: Any, tmp_path: Path
) -> None:
    error = refusal({"enable_lora": value}, engine, options={"vllm_python": vllm(tmp_path, None)})
    assert error is not None and error.param == "params.enable_lora"
    assert str(error) == f"params.enable_lora={value}: must be true or false, without quotation marks"


def test_only_lengths_are_shown_with_their_units() -> None:
    texts = {name: str(refusal({name: "two"})) for name in ("tensor_parallel_size", "max_num_seqs")}
    for name, text in texts.items():
        assert text == f"params.{name}=two: must be a whole number above 0"
    assert "such as 4096, 4k or 4K, or auto" in str(refusal({"max_model_len": "two"}))


def test_the_embedded_engines_own_flags_are_not_vllms(tmp_path: Path) -> None:
    assert refusal({"num_threads": 2}) is None
    assert refusal({"num_threads": 2}, "vllm", options={"vllm_python": vllm(tmp_path, "0.32.0")}) is not None


def test_only_the_embedded_engine_gets_the_setting_for_unknown_fields(tmp_path: Path) -> None:
    config = ManagerConfig(options={"unknown_fields": "refuse", "vllm_python": vllm(tmp_path, None)})
    for engine in ("engine", "vllm"):
        argv = plan_launch(InstanceSpec("acme/model", engine), config).argv("h", 1)
        assert ("--unknown-fields" in argv) == (engine == "engine")
    own = InstanceSpec("acme/model", "engine", params={"unknown_fields": "warn"})
    argv = plan_launch(own, config).argv("h", 1)
    assert argv[argv.index("--unknown-fields") + 1] == "warn"
