"""Settings: defaults, sources, and errors that name the setting, its value and what is allowed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from composition.policies import engine_kinds
from configs.engine_variables import engine_variables
from configs.root import CODE as ROOT
from configs.settings import Settings
from configs.settings_error import SettingsError
from configs.settings_reader import Given, load_settings, read_settings
from docs import settings_pages


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)


def env_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / ".env"
    path.write_text(text)
    return path


def test_defaults_are_those_the_ancestor_had() -> None:
    settings = load_settings()
    assert (settings.app_host, settings.app_port, settings.app_debug) == ("0.0.0.0", 5000, False)
    assert (settings.vllm_base_port, settings.vllm_max_instances) == (9000, 20)
    assert settings.vllm_default_timeout == 600
    assert settings.vllm_default_dtype == settings.vllm_default_kv_cache_dtype == "auto"
    assert settings.vllm_default_trust_remote_code is True


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = env_file(tmp_path, "APP_PORT=5001\nVLLM_BASE_PORT=9100\n")
    monkeypatch.setenv("APP_PORT", "5002")
    settings = load_settings(path)
    assert (settings.app_port, settings.vllm_base_port) == (5002, 9100)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().app_port = 1


def test_an_empty_value_is_the_default(tmp_path: Path) -> None:
    assert load_settings(env_file(tmp_path, "VLLM_PYTHON=\nAPP_PORT=\n")).app_port == 5000


def test_model_dirs_are_separated_as_in_path(tmp_path: Path) -> None:
    path = env_file(tmp_path, f"MODEL_DIRS=/a{os.pathsep}~/b\n")
    assert load_settings(path).model_dirs == (Path("/a"), Path.home() / "b")


@pytest.mark.parametrize(
    ("path", "there"), [("x/y", "{cwd}/x/y"), ("./x", "{cwd}/x"), ("~/x", "{home}/x"), ("/x", "/x")]
)
def test_relative_paths_become_absolute_for_engines_that_run_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, there: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    wanted = Path(there.format(cwd=tmp_path, home="/home/me"))
    names = ("STATE_DIR", "LOG_DIR", "MODELS_FILE", "MODEL_DIRS", "HF_HOME", "VLLM_PYTHON", "API_KEYS_FILE")
    loaded = read_settings(env_file(tmp_path, "".join(f"{name}={path}\n" for name in (*names, "LOG_FILE"))))
    for name in (*names, "LOG_FILE"):
        value = getattr(loaded.settings, name.lower())
        assert value in (wanted, str(wanted), (wanted,), None)
    assert engine_variables(loaded.settings)["HF_HOME"] == str(wanted)


def test_a_program_without_a_folder_is_searched_in_path(tmp_path: Path) -> None:
    assert load_settings(env_file(tmp_path, "VLLM_PYTHON=python3\n")).vllm_python == "python3"


@pytest.mark.parametrize("path", ["~/x", "~nobody-of-this-name/x"])
def test_settings_load_without_a_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", _unknown_user)
    settings = load_settings(env_file(tmp_path, f"MODEL_DIRS={path}\nHF_HOME={path}\n"))
    assert settings.model_dirs == (Path.cwd() / path,)


def _unknown_user(uid: int) -> None:
    raise KeyError(f"getpwuid(): uid not found: {uid}")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("APP_PORT=none", ["APP_PORT=none", "integer"]),
        ("APP_PORT=70000", ["APP_PORT=70000", "65535"]),
        ("DEFAULT_ENGINE=ollama", ["DEFAULT_ENGINE=ollama: Input should be 'auto', 'engine' or 'vllm'"]),
        ("VLLM_DEFAULT_TIMEOUT=-1", ["VLLM_DEFAULT_TIMEOUT=-1", "0"]),
        ("STOP_GRACE=inf", ["STOP_GRACE=inf", "finite"]),
        ("VLLM_BASE_PROT=9000", ["VLLM_BASE_PROT=9000", "VLLM_BASE_PORT"]),
        ("APP_COLOUR=1", ["APP_COLOUR=1", "env.example"]),
        ("API_KEY=sk-1", ["API_KEY=***", "API_KEYS"]),
        ("VLLM_MAX_MODEL_LEN=4096", ["VLLM_MAX_MODEL_LEN=4096", "VLLM_CONFIG"]),
        ("LOG_LEVEL=loud", ["LOG_LEVEL=loud", "'debug'", "'critical'"]),
        ("LOG_FILE=/nowhere/berth.log", ["LOG_FILE=/nowhere/berth.log", "no folder /nowhere"]),
        ("LOG_FILE=/", ["LOG_FILE=/", "folder"]),
        ("UNKNOWN_FIELDS=drop", ["UNKNOWN_FIELDS=drop", "'warn'", "'refuse'"]),
        ("VLLM_CONFIG=/nowhere.json", ["VLLM_CONFIG=/nowhere.json", "No such file"]),
        ("VLLM_BASE_PORT=65530", ["VLLM_MAX_INSTANCES=20", "65535"]),
    ],
)
def test_an_invalid_setting_is_one_line_that_names_it(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(env_file(tmp_path, text + "\n"), kinds=engine_kinds())
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_all_invalid_settings_are_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOP_GRACE", "soon")
    lines = [
        "APP_PORT=none",
        "APP_PROT=1",
        "ON_SHUTDOWN=detach",
        "STATE_URL=memory://",
        "VLLM_BASE_PORT=65530",
    ]
    path = env_file(tmp_path, "\n".join([*lines, "MAX_QUEUE: 5", "VLLM_CONFIG=/nowhere.json"]))
    with pytest.raises(SettingsError) as caught:
        flags = {"log_format": Given("--log-format", "xml")}
        flags |= {"default_engine": Given("--default-engine", "command")}  # it needs a command
        load_settings(path, flags, engine_kinds())
    reported = str(caught.value).splitlines()
    names = ["APP_PORT", "APP_PROT", "ON_SHUTDOWN", "VLLM_MAX_INSTANCES", "STOP_GRACE", "VLLM_CONFIG"]
    found = sorted(line.partition(":")[0].partition("=")[0] for line in reported)
    assert found == sorted([*names, "--log-format", "--default-engine", str(path)])
    assert f"{path}:6: MAX_QUEUE" in str(caught.value)


def test_flags_win_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = env_file(tmp_path, "APP_PORT=5001\nMAX_QUEUE=1\nMAX_IN_FLIGHT=1\n")
    monkeypatch.setenv("APP_PORT", "5002")
    monkeypatch.setenv("MAX_QUEUE", "2")
    settings = load_settings(path, {"app_port": Given("--port", "5003")})
    assert (settings.app_port, settings.max_queue, settings.max_in_flight) == (5003, 2, 1)


def test_a_former_name_applies_when_the_current_one_is_not_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = env_file(tmp_path, "SERVICE_PORT=5001\nMODEL_NAME=small\n")
    loaded = read_settings(path)
    assert (loaded.settings.app_port, loaded.settings.default_model) == (5001, "small")
    assert "SERVICE_PORT=5001 is used as APP_PORT" in loaded.notes
    monkeypatch.setenv("APP_PORT", "5002")
    assert load_settings(path).app_port == 5002
    with pytest.raises(SettingsError, match="SERVICE_PORT=much"):
        monkeypatch.delenv("APP_PORT")
        load_settings(env_file(tmp_path, "SERVICE_PORT=much"))


@pytest.mark.parametrize(
    ("given", "level"), [("INFO", "info"), ("Warn", "warning"), ("trace", "debug"), ("FATAL", "critical")]
)
def test_log_levels_of_other_programs_are_accepted(tmp_path: Path, given: str, level: str) -> None:
    assert load_settings(env_file(tmp_path, f"LOG_LEVEL={given}")).log_level == level


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_an_invalid_parameter_file_is_named(tmp_path: Path, content: str) -> None:
    parameters = tmp_path / "vllm.json"
    parameters.write_text(content)
    with pytest.raises(SettingsError, match=re.escape(f"VLLM_CONFIG={parameters}")):
        load_settings(env_file(tmp_path, f"VLLM_CONFIG={parameters}\n"))


def test_the_parameter_file_wins_over_the_defaults(tmp_path: Path) -> None:
    parameters = tmp_path / "vllm.json"
    parameters.write_text('{"dtype": "float32", "max_num_seqs": 7}')
    settings = load_settings(env_file(tmp_path, f"VLLM_CONFIG={parameters}\n"))
    assert settings.parameters() == {"dtype": "float32", "kv_cache_dtype": "auto", "max_num_seqs": 7}


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("LOG_FORMAT=JSON", "log_format", "json"),
        ("RESTART_POLICY=On-Failure", "restart_policy", "on-failure"),
        ("ON_SHUTDOWN=Detach ", "on_shutdown", "detach"),
        ("UNKNOWN_FIELDS=REFUSE", "unknown_fields", "refuse"),
        ("EXPIRE_ACTION=Sleep1", "expire_action", "sleep1"),
        ("DEFAULT_ENGINE=vLLM", "default_engine", "vllm"),
    ],
)
def test_choices_are_case_insensitive(tmp_path: Path, line: str, field: str, value: str) -> None:
    assert getattr(load_settings(env_file(tmp_path, line)), field) == value


def test_proxy_and_hub_variables_reach_only_the_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    lines = ["HTTP_PROXY=http://proxy:3128", "HF_HOME=/cache", "HF_TOKEN=secret", "OMP_NUM_THREADS=2"]
    path = env_file(tmp_path, "\n".join(lines))
    assert engine_variables(load_settings(path), path) == {
        "HTTP_PROXY": "http://proxy:3128",
        "HF_HOME": "/cache",
        "HF_TOKEN": "secret",
        "OMP_NUM_THREADS": "2",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    assert "HF_TOKEN" not in os.environ


def test_the_pages_of_settings_are_current() -> None:
    assert settings_pages.render_page() == settings_pages.PAGE.read_text(), (
        "docs/settings.md: run `make docs`"
    )
    assert settings_pages.render_example() == settings_pages.EXAMPLE.read_text(), (
        "env.example: run `make docs`"
    )


def test_every_setting_has_a_description_and_a_heading() -> None:
    assert all(field.description for field in Settings.model_fields.values())
    listed = [name for _, fields in settings_pages.sections() for name in fields]
    assert listed == list(Settings.model_fields)
    assert set(settings_pages.HEADINGS) <= set(listed)


def test_env_example_loads_unchanged() -> None:
    assert load_settings(ROOT / "env.example") == load_settings()
