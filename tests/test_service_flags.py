"""`python app.py --…` and `berth serve --…`: every setting is a flag, nothing else is, none is ignored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.service_flags import SHORT_NAMES, FlagError, parse_flags
from configs.settings import Settings
from tests.berth_process import ROOT, BerthProcess, free_port, running_berth


def given(*argv: str) -> dict[str, str]:
    return {field: one.value for field, one in parse_flags(argv, "1").given.items()}


def app(*argv: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    bare = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    return subprocess.run(
        [sys.executable, str(ROOT / "app.py"), *argv],
        cwd=cwd,
        env={**bare, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def berth(*argv: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    bare = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    return subprocess.run(
        [str(ROOT / "cli" / "berth"), *argv],
        cwd=cwd,
        env={**bare, "BERTH_PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_setting_is_a_flag() -> None:
    for field in Settings.model_fields:
        assert given(f"--{field.replace('_', '-')}=7") == {field: "7"}
        assert given(f"--{field.upper()}=7") == {field: "7"}


def test_names_used_by_other_servers_are_accepted() -> None:
    argv = ["--host", "h", "--port", "5001", "--model-name", "m", "--limit-concurrency", "100"]
    assert given(*argv, "--log-level", "debug") == {
        "app_host": "h",
        "app_port": "5001",
        "default_model": "m",
        "max_in_flight": "100",
        "log_level": "debug",
    }
    assert given("--model", "m") == {"default_model": "m"}
    assert set(SHORT_NAMES.values()) <= Settings.model_fields.keys()


def test_switches_may_be_bare_or_have_a_value() -> None:
    assert given("--access-log", "--debug") == {"access_log": "true", "app_debug": "true"}
    assert given("--no-autostart", "--access-log=false") == {"autostart": "false", "access_log": "false"}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--prot", "1"], "did you mean --port?"),
        (["--app-prot", "1"], "did you mean --app-port?"),
        (["--api-key", "k"], "did you mean --api-keys?"),
        (["--models-fiel", "x"], "did you mean --models-file?"),
        (["--limit-concurency", "1"], "did you mean --limit-concurrency?"),
        (["--max-model-len", "4096"], "models.yaml"),
        (["--workers", "4"], "there is no flag --workers"),
        (["-p", "1"], "there is no flag -p"),
        (["serve"], "'serve' isn't a flag"),
        (["--port"], "--port"),
        (["--por", "1"], "did you mean --port?"),
        (["--json"], "--check"),
    ],
)
def test_an_unknown_flag_is_refused_with_a_suggestion(argv: list[str], expected: str) -> None:
    with pytest.raises(FlagError) as caught:
        parse_flags(argv, "1")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_in_flags_are_relative_to_the_callers_folder() -> None:
    argv = ["--relative-to=/here", "--log-file", "a.log", "--models-file=/abs.yaml", "--model-dirs", "m:~/n"]
    argv += ["--vllm-python", "python3", "--hf-home", "hub", "--default-model", "x"]
    assert given(*argv) == {
        "log_file": "/here/a.log",
        "models_file": "/abs.yaml",
        "model_dirs": f"/here/m:{Path.home()}/n",
        "vllm_python": "python3",
        "hf_home": "/here/hub",
        "default_model": "x",
    }


def test_the_server_exits_with_status_2_and_a_line_for_each_error(tmp_path: Path) -> None:
    ran = app("--limit-concurency", "100", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "berth: there is no flag --limit-concurency; did you mean --limit-concurrency?\n"

    (tmp_path / ".env").write_text("APP_PROT=1\n")
    (tmp_path / "models.yaml").write_text("modles: {}\n")
    argv = ["--port", "none", "--models-file", "models.yaml", "--api-keys-file", "nowhere"]
    ran = app(*argv, "--protocol-plugins", "no.such:Thing", "--state-url", "mongo://x", cwd=tmp_path)
    assert ran.returncode == 2
    lines = ran.stderr.splitlines()
    assert all(line.startswith("berth: ") for line in lines)
    for part in (
        "--port=none",
        "APP_PROT=1",
        "models.yaml:1: modles",
        f"API_KEYS_FILE={tmp_path}/nowhere",
        "no.such",
        "mongo",
    ):
        assert len([line for line in lines if part in line]) == 1, (part, ran.stderr)
    assert len(lines) == 6


def test_help_and_version(tmp_path: Path) -> None:
    ran = app("--help", cwd=tmp_path)
    assert ran.returncode == 0
    for field in Settings.model_fields:
        assert f"--{field.replace('_', '-')}" in ran.stdout
    assert app("--version", cwd=tmp_path).stdout.startswith("Berth ")


def test_the_server_follows_its_flags(tmp_path: Path) -> None:
    """Flags win over the environment, which sets another port."""
    port, other, demo = free_port(), free_port(), str(ROOT / "models" / "berth-demo")
    argv = ["--port", str(port), "--model-name", demo, "--limit-concurrency", "100"]
    berth = BerthProcess(tmp_path, APP_PORT=str(other), argv=[*argv, "--unknown-fields=refuse"])
    berth.port, berth.url = port, f"http://127.0.0.1:{port}"
    try:
        berth.wait_until_serving()
        with berth.client() as client:
            made = client.post("/instances?wait=60", json={})  # without a model
            assert made.status_code == 201, made.text
            assert made.json()["model_name"] == demo
            assert "--unknown-fields refuse" in " ".join(made.json()["command"])
        berth.terminate()
        assert berth.wait() == 0
    finally:
        berth.close()


def test_berth_serve_refuses_flags_that_the_server_does_not_have(tmp_path: Path) -> None:
    ran = berth("serve", "--log-fiel", "x", cwd=tmp_path)
    assert (ran.returncode, "did you mean --log-file?" in ran.stderr) == (2, True)
    ran = berth("serve", "--log-file", "nowhere/x.log", cwd=tmp_path)
    assert (ran.returncode, f"there is no folder {tmp_path}/nowhere" in ran.stderr) == (2, True)


def checked(*argv: str, cwd: Path, **environment: str) -> tuple[int, dict[str, Any]]:
    ran = berth("config", "check", "--json", *argv, cwd=cwd, **environment)
    assert ran.stderr == "", ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return ran.returncode, found


CATALOG = """\
models:
  good:
    path: {demo}
  gone:
    path: nowhere
  no-vllm:
    engine: vllm
    model: a/b
  devices:
    path: {demo}
    devices: [7]
  flag:
    path: {demo}
    params: {{no_such_flag: 3}}
  number:
    path: {demo}
    params: {{max_model_len: abc}}
  program:
    command: [no-such-server, --port, "{{port}}"]
  portless:
    command: [sh, -c, "exec server"]
  broken:
    path: broken
"""
CATALOG = CATALOG.format(demo=ROOT / "models" / "berth-demo")


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """A folder with a catalog in which only one model can be started."""
    (tmp_path / "models.yaml").write_text(CATALOG)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    return tmp_path


PROBLEMS = {
    "gone": "no such directory",
    "no-vllm": "VLLM_PYTHON",
    "devices": "no device '7'",
    "flag": "no_such_flag",
    "number": "max_model_len=abc",
    "program": "no-such-server",
    "portless": "{port}",
    "broken": "config.json isn't valid JSON",
}


def test_a_check_reports_every_problem_without_serving(wrong: Path) -> None:
    argv = [
        "--models-file",
        "models.yaml",
        "--model-dirs",
        "models:broken/config.json",
        "--log-dir",
        "models.yaml",
    ]
    argv += ["--vllm-base-port", "9000", "--port", "9003", "--hf-home", "hub", "--vllm-python", ""]
    status, found = checked(*argv, cwd=wrong, CUDA_VISIBLE_DEVICES="", VLLM_BASE_PROT="1")
    assert (status, found["ok"]) == (1, False)
    for name, part in PROBLEMS.items():
        assert [line for line in found["mistakes"] if line.startswith(f"model {name}") and part in line], name
    for part in (
        f"{wrong}/models: there is no such folder",
        "config.json: isn't a folder",
        "LOG_DIR=",
        "APP_PORT=9003",
    ):
        assert [line for line in found["mistakes"] if part in line], part
    for part in ("HF_HOME=", "VLLM_BASE_PROT=1"):
        assert [line for line in found["warnings"] if part in line], part
    assert not [line for line in found["mistakes"] if "model good" in line]
    assert not (wrong / "state").exists()


def test_a_check_without_problems_exits_with_status_0(tmp_path: Path) -> None:
    status, found = checked(cwd=tmp_path)
    assert (status, found["ok"], found["mistakes"]) == (0, True, [])
    ran = berth("config", "check", cwd=tmp_path)
    assert (ran.returncode, ran.stdout.startswith("all is well")) == (0, True)


def test_a_check_reports_invalid_settings_too(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("models: {a: {max_model_len: x}, b: {pinned: 7}}\n")
    ran = berth(
        *("config", "check", "--port", "none", "--models-file", "models.yaml"),
        cwd=tmp_path,
        STOP_GRACE="soon",
    )
    assert ran.returncode == 1
    for part in ("--port=none", "STOP_GRACE=soon", "models.a.max_model_len", "models.b.pinned"):
        assert part in ran.stdout
    assert berth("config", "check", "--prot", "1", cwd=tmp_path).returncode == 2


def test_a_start_and_a_reload_report_the_same(wrong: Path) -> None:
    settings = {
        "MODELS_FILE": str(wrong / "models.yaml"),
        "CUDA_VISIBLE_DEVICES": "",
        "MODEL_DIRS": "/nowhere",
    }
    with running_berth(wrong, **settings) as berth, berth.client() as client:
        log = berth.output()
        for name, part in PROBLEMS.items():
            assert [line for line in log.splitlines() if f"model {name}" in line and part in line], name
        assert log.count("/nowhere: there is no such folder") == 1
        warnings = client.post("/reload").json()["warnings"]
        for name, part in PROBLEMS.items():
            assert [line for line in warnings if line.startswith(f"model {name}") and part in line], name
        record = client.get("/models/devices").json()
        assert "no device '7'" in record["problem"]
        assert client.get("/models/good").json()["problem"] is None
        answer = client.post("/models/devices/start?wait=20")
        assert "no device '7'" in answer.text and answer.status_code >= 400

        (wrong / "models.yaml").write_text(CATALOG.replace("devices: [7]", "devices: []"))
        warnings = client.post("/reload").json()["warnings"]
        assert not [line for line in warnings if line.startswith("model devices")]
        assert client.get("/models/devices").json()["problem"] is None
