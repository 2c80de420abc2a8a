"""The script that runs llama.cpp's server out of a Python package: its command line, with a stand-in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from instance_manager.backends.llama_cpp import in_process_server
from instance_manager.backends.llama_cpp.in_process_server import BadArgument, read_arguments, read_options

PACKAGE = """
import json, os
class _Part:
    def __setattr__(self, name, value):
        self.__dict__[name] = value
class CommonParams(_Part):
    def __init__(self):
        self.model, self.cpuparams, self.sampling = _Part(), _Part(), _Part()
        self.embedding = False
        self.default_template_kwargs, self.lora_adapters = {}, []
class CommonAdapterLoraInfo(_Part):
    pass
class ggml_type:
    GGML_TYPE_Q8_0 = "q8_0"
class llama_flash_attn_type:
    LLAMA_FLASH_ATTN_TYPE_ENABLED = "enabled"
class Server:
    def __init__(self, params):
        plain = lambda one: sorted(one) if isinstance(one, set) else one.__dict__
        print(json.dumps(params, default=plain), flush=True)
        os._exit(0)
"""


def run(tmp_path: Path, *argv: str, package: str = PACKAGE) -> tuple[int, Any, str]:
    """Exit status, the parameters that the package's server got, and the errors."""
    (tmp_path / "xllamacpp.py").write_text(package)
    done = subprocess.run(
        [sys.executable, in_process_server.__file__, *argv],
        env={"PYTHONPATH": str(tmp_path), "LLAMA_API_KEY": "secret"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def test_its_flags_become_the_package_s_fields(tmp_path: Path) -> None:
    status, params, errors = run(
        tmp_path,
        *("--model", "/m.gguf", "--alias", "a", "--host", "127.0.0.1", "--port", "9001", "--metrics"),
        *("-c", "4096", "--parallel", "2", "-ngl", "all", "--flash_attn", "on", "-ctk", "q8_0"),
        *("--no-warmup", "--no-kv-offload", "--temp", "0.5", "--reasoning", "off", "--threads", "2"),
        *("--chat-template-kwargs", '{"a": 1}', "--lora", '/a.gguf,"/b,c.gguf"'),
    )
    assert (status, errors) == (0, "")
    wanted = {
        "model": {"path": "/m.gguf"},
        "model_alias": ["a"],
        "hostnames": ["127.0.0.1"],
        "port": 9001,
        "api_keys": ["secret"],
        "endpoint_metrics": True,
        "n_ctx": 4096,
        "n_parallel": 2,
        "n_gpu_layers": -2,
        "flash_attn_type": "enabled",
        "cache_type_k": "q8_0",
        "warmup": False,
        "no_kv_offload": True,
        "sampling": {"temp": 0.5},
        "cpuparams": {"n_threads": 2},
        "default_template_kwargs": {"enable_thinking": "false", "a": "1"},
        "lora_adapters": [{"path": "/a.gguf", "scale": 1.0}, {"path": "/b,c.gguf", "scale": 1.0}],
    }
    assert {name: params[name] for name in wanted} == wanted


def test_without_a_number_of_slots_it_has_llama_server_s_own(tmp_path: Path) -> None:
    for argv in ((), ("--parallel", "-1")):
        _, params, _ = run(tmp_path, *argv)
        assert (params["n_parallel"], params["kv_unified"]) == (4, True)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--foo"], "error: invalid argument: --foo"),
        (["--port"], "error: invalid argument: --port needs a value"),
        (["--port", "x"], 'error: error while handling argument "--port": '),
        (["-ctk", "fp8"], 'error: error while handling argument "--cache-type-k": must be one of f32'),
        (["--reasoning", "x"], "must be one of on, off, auto"),
    ],
)
def test_what_it_can_not_read_ends_it_as_llama_server_ends(
    tmp_path: Path, argv: list[str], says: str
) -> None:
    status, params, errors = run(tmp_path, *argv)
    assert (status, params) == (1, None)
    assert says in errors


def test_a_server_that_does_not_start_and_a_missing_package_end_it(tmp_path: Path) -> None:
    refuses = PACKAGE[: PACKAGE.index("class Server")] + "def Server(params): raise RuntimeError('no')\n"
    assert run(tmp_path, package=refuses)[::2] == (1, "exiting: no\n")
    status, _, errors = run(tmp_path, package="raise ImportError('libfoo')")
    assert status == 1 and "the package xllamacpp can't be loaded: libfoo" in errors


def test_every_flag_of_the_table_can_be_read() -> None:
    options = read_options()
    assert len({name for one in options for name in (*one.names, *one.negative)}) > 150
    for option in options:
        assert option.kind in ("switch", "integer", "number", "text", "choice")
        value = [] if option.kind == "switch" else ["1"]
        for name in option.names:
            assert read_arguments([name, *value]) == [(option, value[0] if value else True)]
        for name in option.negative:
            assert read_arguments([name]) == [(option, False)]
    with pytest.raises(BadArgument):
        read_arguments(["--no-such-flag"])


def test_its_choices_are_members_of_the_package_s_enums() -> None:
    """As in a real package: tests/peers/ has it."""
    members = SimpleNamespace(LLAMA_SPLIT_MODE_ROW="row", COMMON_REASONING_FORMAT_NONE="none")
    package: Any = SimpleNamespace(
        CommonParams=SimpleNamespace, llama_split_mode=members, common_reasoning_format=members
    )
    parameters = in_process_server._Parameters(package)
    by_name = {option.names[0]: option for option in read_options()}
    parameters.set(by_name["--split-mode"], "row")
    parameters.set(by_name["--reasoning-format"], "none")
    assert parameters.made == SimpleNamespace(split_mode="row", reasoning_format="none")
