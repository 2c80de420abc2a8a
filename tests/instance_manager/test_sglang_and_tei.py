"""SGLang and text-embeddings-inference: from a spec to a command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from instance_manager.backends import BACKENDS, plan_launch
from instance_manager.backends.runner_kind import RunnerKind
from instance_manager.backends.sglang import SglangBackend
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec
from instance_manager.types import FailureClass, InstanceSpec

CONFIG = ManagerConfig(options={"sglang_python": "/opt/sglang/bin/python", "tei_server": "/bin/true"})


def argv_of(engine: str, **params: Any) -> list[str]:
    return plan_launch(InstanceSpec("acme/model", engine, params=params), CONFIG).argv("127.0.0.1", 9001)


def test_sglang_gets_its_own_names_for_common_parameters() -> None:
    python, _, _, *flags = argv_of(
        "sglang",
        max_model_len=4096,
        gpu_memory_utilization=0.8,
        tensor_parallel_size=2,
        disable_radix_cache=False,
    )
    assert python == "/opt/sglang/bin/python"
    assert flags == [
        *("--enable-metrics", "--context-length", "4096", "--mem-fraction-static", "0.8"),
        *("--tensor-parallel-size", "2", "--served-model-name", "acme/model"),
        *("--model-path", "acme/model", "--host", "127.0.0.1", "--port", "9001"),
    ]
    assert "--is-embedding" in argv_of("sglang", runner="pooling")


def test_sglang_s_key_is_not_in_the_process_list(tmp_path: Path) -> None:
    package = tmp_path / "sglang"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "launch_server.py").write_text(
        "import json, sys\nif __name__ == '__main__':\n    print(json.dumps(sys.argv[1:]))\n"
    )
    argv = argv_of("sglang")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), SglangBackend.api_key_variable: "secret"}
    done = subprocess.run(
        [sys.executable, *argv[1:]], env=environ, capture_output=True, check=True, text=True
    )
    assert json.loads(done.stdout) == [*argv[3:], "--api-key", "secret"]
    assert "secret" not in argv


def test_tei_listens_on_its_own_port_alone() -> None:
    made = plan_launch(
        InstanceSpec("acme/model", "tei", params={"dtype": "half", "auto_truncate": True}), CONFIG
    )
    assert made.argv("127.0.0.1", 9001) == [
        *("/bin/true", "--auto-truncate", "--dtype", "float16", "--served-model-name", "acme/model"),
        *("--model-id", "acme/model", "--hostname", "127.0.0.1", "--port", "9001"),
        *("--uds-path", "/tmp/berth-tei-9001"),  # noqa: S108
    ]
    assert made.env == {"PROMETHEUS_PORT": "0"}
    assert made.runner is RunnerKind.POOLING and not made.must_name_model
    assert "--dtype" not in argv_of("tei", dtype="auto", trust_remote_code=True)


@pytest.mark.parametrize(
    ("engine", "params", "says"),
    [
        ("sglang", {"model_path": "x"}, "Berth sets it"),
        ("sglang", {"max_model_len": 1, "context_length": 2}, "say the same; keep one"),
        ("sglang", {"lora_modules": ["a=/b"]}, "name adapters in lora_paths"),
        ("tei", {"hostname": "x"}, "Berth sets it"),
        ("tei", {"max_model_len": 4}, "it has nothing like that"),
    ],
)
def test_what_they_can_not_get_is_refused(engine: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidSpec, match=says) as refused:
        argv_of(engine, **params)
    assert refused.value.param and refused.value.param.startswith("params.")


@pytest.mark.parametrize(
    ("engine", "setting", "says"),
    [
        ("sglang", "SGLANG_PYTHON", "needs SGLANG_PYTHON"),
        ("tei", "TEI_SERVER", "needs text-embeddings-router"),
    ],
)
def test_without_their_program_the_setting_is_named(
    engine: str, setting: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/none")
    with pytest.raises(InvalidSpec, match=says):
        plan_launch(InstanceSpec("acme/model", engine), ManagerConfig())
    kind = BACKENDS[engine]
    assert list(kind.problems_of_settings({}, is_default=False)) == []
    (problem,) = kind.problems_of_settings({}, is_default=True)
    assert problem.startswith(f"DEFAULT_ENGINE={engine}: ")
    (problem,) = kind.problems_of_settings({setting.lower(): "/none"}, is_default=False)
    assert problem.startswith(f"{setting}=/none: can't be run")


@pytest.mark.parametrize(
    ("engine", "line", "failure"),
    [
        ("sglang", "Not enough memory. Please try to increase --mem-fraction-static.", "out_of_memory"),
        ("sglang", "launch_server.py: error: unrecognized arguments: --foo", "bad_arguments"),
        ("tei", "error: unexpected argument '--foo' found", "bad_arguments"),
        ("tei", "Error: Model is not supported", "unsupported_model"),
    ],
)
def test_their_logs_show_why_they_failed(engine: str, line: str, failure: str) -> None:
    assert BACKENDS[engine].log_patterns.shows(FailureClass(failure), line)
