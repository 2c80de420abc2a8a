"""From a spec to a command line, for each back end."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instance_manager.backends import BACKENDS, LaunchPlan, backend_of, plan_launch
from instance_manager.backends.model_paths import find_model
from instance_manager.backends.sleep_style import SleepStyle
from instance_manager.backends.vllm import VllmSleep
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec, ModelNotFound
from instance_manager.types import FailureClass, InstanceSpec

CONFIG = ManagerConfig(
    default_params={"dtype": "auto", "max_model_len": 4096},
    options={"vllm_python": "/opt/vllm/bin/python", "vllm_default_trust_remote_code": True},
)


def plan(engine: str, config: ManagerConfig = CONFIG, **fields: Any) -> LaunchPlan:
    return plan_launch(InstanceSpec("acme/model", engine, **fields), config)


def test_the_embedded_engine_runs_in_our_interpreter_from_our_root() -> None:
    made = plan("engine", params={"max-model-len": 128, "enforce_eager": False})
    argv = made.argv("127.0.0.1", 9001)
    assert argv[:3] == [sys.executable, "-m", "engine"]
    assert argv[3:] == [
        *("--enable-sleep-mode", "--dtype", "auto", "--max-model-len", "128", "--no-enforce-eager"),
        *("--served-model-name", "acme/model"),
        *("--model", "acme/model", "--host", "127.0.0.1", "--port", "9001"),
    ]
    root = Path(__file__).resolve().parents[2]
    assert made.cwd == str(root)
    assert made.env["PYTHONPATH"].split(":")[0] == str(root)
    assert made.must_name_model
    assert made.params == {
        "enable_sleep_mode": True,
        "dtype": "auto",
        "max_model_len": 128,
        "enforce_eager": False,
    }


def test_a_model_directory_is_passed_by_path_and_served_by_name(tmp_path: Path) -> None:
    (tmp_path / "acme/model").mkdir(parents=True)
    argv = plan("engine", replace(CONFIG, model_dirs=(tmp_path,))).argv("h", 1)
    assert argv[argv.index("--model") + 1] == str(tmp_path / "acme/model")
    assert argv[argv.index("--served-model-name") + 1] == "acme/model"


def test_a_folder_of_models_may_have_the_layout_of_a_hub_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("c0ffee\n")
    assert find_model("owner/name", [tmp_path]) == str(snapshot)
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("../../../../etc\n")
    assert find_model("owner/name", [tmp_path]) == "owner/name"


def test_vllm_runs_in_its_own_interpreter_with_its_own_defaults() -> None:
    argv = plan("vllm", params={"dtype": None, "disable_log_stats": False, "enable_lora": False}).argv("h", 2)
    assert argv[:3] == ["/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    assert "--trust-remote-code" in argv
    assert "--dtype" not in argv
    assert "--no-enable-lora" in argv
    assert not any("log-stats" in argument for argument in argv)
    assert "--trust-remote-code" not in plan("engine").argv("h", 2)


def test_vllm_without_its_interpreter_names_the_setting() -> None:
    with pytest.raises(InvalidSpec, match="VLLM_PYTHON") as refusal:
        plan("vllm", replace(CONFIG, options={}))
    assert refusal.value.param == "engine"


@pytest.mark.parametrize("engine", ["engine", "vllm"])
@pytest.mark.parametrize("name", ["model", "host", "port", "api_key", "api-key", "uds", "ssl_keyfile"])
def test_parameters_that_berth_sets_are_refused(engine: str, name: str) -> None:
    with pytest.raises(InvalidSpec, match="Berth sets it") as refusal:
        plan(engine, params={name: "x"})
    assert refusal.value.param == f"params.{name}"


def test_an_abbreviated_flag_does_not_win_over_berths_own() -> None:
    """argparse accepts `--por` for `--port`; the last one wins."""
    with pytest.raises(InvalidSpec, match="no such flag"):
        plan("engine", params={"por": 1})
    argv = plan("vllm", params={"por": 1}).argv("h", 9000)  # of a version whose flags are not known
    assert argv.index("--por") < argv.index("--port")


@pytest.mark.parametrize(("given", "first"), [("other", "other"), (["one", "two"], "one")])
def test_the_served_name_may_be_chosen(given: Any, first: str) -> None:
    made = plan("engine", params={"served_model_name": given})
    assert made.served_model_name == first
    argv = made.argv("h", 1)
    assert argv[argv.index("--served-model-name") + 1] == first


@pytest.mark.parametrize("given", [[], "", 3, [1], True])
def test_an_invalid_served_name_is_refused(given: Any) -> None:
    with pytest.raises(InvalidSpec) as refusal:
        plan("engine", params={"served_model_name": given})
    assert refusal.value.param == "params.served_model_name"


def test_a_command_is_filled_in_literally() -> None:
    template = ["srv", "--port={port}", "{host}:{port}", "{model}", "{x} {", "$HOME"]
    made = plan("command", command=template, health_path="/ok")
    assert made.argv("h", 7) == ["srv", "--port=7", "h:7", "acme/model", "{x} {", "$HOME"]
    assert (made.health_path, made.must_name_model, made.params) == ("/ok", False, {})


def test_a_command_that_is_llama_server_gets_a_connection_for_each_request() -> None:
    assert not plan("command", command=["/opt/llama/llama-server", "{port}"]).keeps_connections
    assert plan("command", command=["serve", "llama-server", "{port}"]).keeps_connections


def test_a_model_name_with_placeholders_is_not_filled_in_again() -> None:
    made = plan_launch(InstanceSpec("{port}", "command", command=["{model}"]), CONFIG)
    assert made.argv("h", 7) == ["{port}"]


@pytest.mark.parametrize(
    ("engine", "fields", "param"),
    [
        ("nope", {}, "engine"),
        ("command", {}, "command"),
        ("command", {"command": []}, "command"),
        ("command", {"command": "srv --port 1"}, "command"),
        ("command", {"command": ["srv", 1]}, "command"),
        ("command", {"command": [""]}, "command"),
        ("command", {"command": ["a\0"]}, "command"),
        ("command", {"command": ["srv"], "params": {"a": 1}}, "params"),
        ("engine", {"command": ["srv"]}, "command"),
        ("vllm", {"command": ["srv"]}, "command"),
    ],
)
def test_a_wrong_spec_names_its_field(engine: str, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidSpec) as refusal:
        plan(engine, **fields)
    assert refusal.value.param == param


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidSpec, match=f"known engines: {', '.join(BACKENDS)}$"):
        plan("skratch")


def test_a_path_that_does_not_exist_is_not_found() -> None:
    with pytest.raises(ModelNotFound, match="/no/such/model"):
        plan_launch(InstanceSpec("/no/such/model", "engine"), CONFIG)


def test_weights_are_loaded_before_a_vllm_wakes_from_level_2_and_a_token_proves_it() -> None:
    paths = {level: [call.path for call in VllmSleep().to_wake(level, "m")] for level in (1, 2)}
    assert paths[1] == ["/wake_up", "/v1/completions"]
    assert paths[2] == ["/wake_up", "/collective_rpc", "/wake_up", "/v1/completions"]
    assert [call.path for call in SleepStyle().to_wake(2, "m")] == ["/wake_up"]


def test_a_command_may_be_any_server() -> None:
    command = BACKENDS["command"]
    for other in BACKENDS.values():
        assert set(other.log_patterns.signs) <= set(command.log_patterns.signs)
        assert set(other.log_patterns.reasons) <= set(command.log_patterns.reasons)
        if other.progress is not None:
            assert command.progress is not None
            assert set(other.progress.steps) <= set(command.progress.steps)


def test_an_engine_of_an_unknown_kind_can_be_watched_but_not_started() -> None:
    unknown = backend_of("of-a-newer-berth")
    assert unknown.progress is None
    assert unknown.log_patterns.shows(FailureClass.OUT_OF_MEMORY, "CUDA out of memory")
    with pytest.raises(InvalidSpec, match="unknown engine 'of-a-newer-berth'"):
        plan("of-a-newer-berth", command=["serve"])


@pytest.mark.parametrize(
    ("options", "is_default", "problems"),
    [
        ({}, False, []),
        ({}, True, ["DEFAULT_ENGINE=vllm: needs VLLM_PYTHON, the interpreter with vLLM installed"]),
        ({"vllm_python": sys.executable}, True, []),
        ({"vllm_python": "/none"}, False, ["VLLM_PYTHON=/none: doesn't exist; name the Python interpreter"]),
        ({"vllm_python": "/etc/passwd"}, True, ["VLLM_PYTHON=/etc/passwd: can't be run; name the Python"]),
    ],
)
def test_a_kind_knows_what_is_wrong_with_its_settings(
    options: dict[str, Any], is_default: bool, problems: list[str]
) -> None:
    found = list(BACKENDS["vllm"].problems_of_settings(options, is_default=is_default))
    assert [line[: len(problem)] for line, problem in zip(found, problems, strict=True)] == problems
