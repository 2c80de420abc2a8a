""".env is shared: what is Berth's is checked, what is for engines reaches them, all else is left alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.engine_variables import engine_variables, sdk_environment
from configs.env_file import read_env_file
from configs.near_names import count_typos
from configs.root import CODE as ROOT
from configs.settings import NAMES
from configs.settings_error import SettingsError
from configs.settings_reader import load_settings, read_settings

# The content of other programs' .env files, by program.
OTHERS = {
    "compose": "COMPOSE_PROJECT_NAME=ai COMPOSE_PROFILES=gpu COMPOSE_FILE=a.yml DOCKER_HOST=x PUID=1000",
    "shells": "TZ=Europe/Oslo LANG=C.UTF-8 LC_ALL=C EDITOR=vi TMPDIR=/t PATH=/bin PORT=1 HOST=h DEBUG=1",
    "vLLM": "VLLM_HOST_IP=10.0.0.1 VLLM_LOGGING_LEVEL=DEBUG VLLM_ATTENTION_BACKEND=FLASH_ATTN "
    "VLLM_CONFIG_ROOT=/c VLLM_RPC_TIMEOUT=1 VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 VLLM_PLUGINS=a "
    "VLLM_MAX_AUDIO_CLIP_FILESIZE_MB=25 VLLM_DO_NOT_TRACK=1 VLLM_CPU_KVCACHE_SPACE=4 VLLM_SLEEP_WHEN_IDLE=1",
    "hub and CUDA": "HF_TOKEN=t HF_HUB_OFFLINE=1 HF_HUB_CACHE=/h HUGGINGFACE_HUB_TOKEN=t OMP_NUM_THREADS=4 "
    "CUDA_VISIBLE_DEVICES=0 NVIDIA_VISIBLE_DEVICES=all NCCL_DEBUG=INFO PYTORCH_CUDA_ALLOC_CONF=x ALL_PROXY=p",
    "Open WebUI": "OLLAMA_BASE_URL=http://o:11434 OPENAI_API_BASE_URL=http://b:5000/v1 OPENAI_API_KEY=k "
    "OPENAI_API_KEYS=k;l WEBUI_SECRET_KEY=s WEBUI_AUTH=false DEFAULT_MODELS=small DATA_DIR=/d STATIC_DIR=/s "
    "CORS_ALLOW_ORIGIN=* SCARF_NO_ANALYTICS=true DO_NOT_TRACK=true ANONYMIZED_TELEMETRY=false "
    "FORWARDED_ALLOW_IPS=* AUTOMATIC1111_BASE_URL=http://a DATABASE_URL=sqlite:///x ENABLE_SIGNUP=false",
    "Ollama": "OLLAMA_HOST=0.0.0.0 OLLAMA_MODELS=/m OLLAMA_KEEP_ALIVE=5m OLLAMA_NUM_PARALLEL=4 "
    "OLLAMA_MAX_LOADED_MODELS=2 OLLAMA_MAX_QUEUE=512 OLLAMA_DEBUG=1 OLLAMA_ORIGINS=*",
    "llama.cpp": "LLAMA_ARG_MODEL=/m.gguf LLAMA_ARG_CTX_SIZE=4096 LLAMA_ARG_N_GPU_LAYERS=99 LLAMA_ARG_PORT=1 "
    "LLAMA_ARG_HOST=0.0.0.0 LLAMA_CACHE=/c GGML_CUDA_ENABLE_UNIFIED_MEMORY=1 LLAMA_API_KEY=k",
    "LiteLLM": "LITELLM_MASTER_KEY=sk-1 LITELLM_SALT_KEY=s ANTHROPIC_API_KEY=k STORE_MODEL_IN_DB=True",
    "databases": "POSTGRES_USER=u POSTGRES_PASSWORD=p REDIS_URL=redis://r REDIS_PASSWORD=p MYSQL_DATABASE=d",
    "web frameworks": "APP_NAME=Shop APP_ENV=production APP_KEY=base64:x APP_URL=http://shop APP_SECRET=s",
    "Berth's own compose file and command line": "BERTH_ADDRESS=0.0.0.0:5000 BERTH_MODELS=/m BERTH_URL=b "
    "BERTH_KEY_FILE=k BERTH_API_KEY=k BERTH_PYTHON=/p BERTH_NATIVE_KERNELS=0 "
    "BERTH_TRITON_KERNELS=1 BERTH_CUDA_GRAPHS=1 BERTH_SCALED_PRODUCTS=0",
    "telemetry": "OTEL_TRACES_SAMPLER=always_on OTEL_EXPORTER_OTLP_HEADERS=a=b OTEL_RESOURCE_ATTRIBUTES=a=b",
}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def pairs(text: str) -> list[list[str]]:
    return [one.split("=", 1) for one in text.split()]


def env_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / ".env"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("whose", OTHERS)
@pytest.mark.parametrize("written", [str.upper, str.lower])
def test_other_programs_variables_do_not_prevent_the_start(
    tmp_path: Path, whose: str, written: Callable[[str], str]
) -> None:
    lines = [f"{written(name)}={value}" for name, value in pairs(OTHERS[whose])]
    path = env_file(tmp_path, "\n".join(["APP_PORT=5001", *lines]))
    assert load_settings(path).app_port == 5001


def test_names_are_case_insensitive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "inside")
    lines = "app_port=5001 http_proxy=http://p:1 hf_token=t vllm_api_key=k berth_url=b service_port=1"
    path = env_file(tmp_path, "\n".join([*lines.split(), "hf_hub_cache=/small", "HF_HUB_CACHE=/large"]))
    loaded = read_settings(path)
    assert (loaded.settings.app_port, loaded.mistakes) == (5001, ())
    assert [line.split(" in ")[0] for line in loaded.remarks] == ["vllm_api_key"]
    bypassed = dict.fromkeys(["NO_PROXY", "no_proxy"], "inside,127.0.0.1,localhost")
    own = {"HTTP_PROXY": "http://p:1", "HF_TOKEN": "t", "HF_HUB_CACHE": "/large"}
    assert engine_variables(loaded.settings, path) == {**own, **bypassed}
    assert sdk_environment(env_file(tmp_path, "otel_traces_sampler=a")) == {"OTEL_TRACES_SAMPLER": "a"}


def test_every_variable_of_the_compose_files_is_accepted(tmp_path: Path) -> None:
    text = "".join(path.read_text() for path in (ROOT / "deploy").glob("docker-compose*.yml"))
    names = sorted(set(re.findall(r"\$\{(\w+)", text)))
    assert "BERTH_MODELS" in names
    load_settings(env_file(tmp_path, "".join(f"{name}=1\n" for name in names)))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("VLLM_BASE_PROT", "VLLM_BASE_PORT"),
        ("VLLM_MAX_INSTANCE", "VLLM_MAX_INSTANCES"),
        ("MODELS_DIR", "MODEL_DIRS"),
        ("LOGS_DIR", "LOG_DIR"),
        ("API_KEY", "API_KEYS"),
        ("api_kyes", "API_KEYS"),
        ("PORT_APP", "APP_PORT"),
        ("HF_HOM", "HF_HOME"),
        ("HTTP_PROXI", "HTTP_PROXY"),
        ("STARTUP_TIMEOUT", "START_TIMEOUT"),
        ("OTEL_SERVICE_NAMES", "OTEL_SERVICE_NAME"),
        ("VLLM_DEFAULT_MAX_LEN", "VLLM_CONFIG"),
        ("VLLM_MAX_NUM_SEQS", "VLLM_CONFIG"),
        ("BERTH_COLOUR", "env.example"),
        ("APP_TIMEOUT", "env.example"),
    ],
)
def test_a_misspelt_setting_prevents_the_start_and_is_corrected(
    tmp_path: Path, name: str, meant: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(env_file(tmp_path, f"{name}=1\n"))
    assert str(caught.value).startswith(f"{name}=")
    assert meant in str(caught.value)


def test_only_engine_variables_reach_the_engines(tmp_path: Path) -> None:
    lines = ["LLAMA_ARG_CTX_SIZE=1", "VLLM_HOST_IP=a", "OLLAMA_MODELS=b", "HF_TOKEN=c", "NO_PROXY=d"]
    path = env_file(
        tmp_path, "\n".join([*lines, "TZ=UTC", "OPENAI_API_KEY=k", "VLLM_API_KEY=k", "VLLM_PORT=1"])
    )
    assert engine_variables(load_settings(path), path) == dict(line.split("=") for line in lines)


def test_ignored_variables_are_logged_once(tmp_path: Path) -> None:
    path = env_file(tmp_path, "TZ=UTC\nLANG=C\nVLLM_API_KEY=k\nHF_TOKEN=t\nthis is no line\n")
    loaded = read_settings(path)
    assert loaded.notes == (f"{path}: not settings of Berth, ignored: TZ, LANG",)
    remarks = loaded.remarks
    assert [line for line in remarks if line.startswith("VLLM_API_KEY") and "API_KEYS" in line]
    assert [line for line in remarks if f"{path}:5: this: sets nothing" in line]
    assert not [line for line in remarks if "HF_TOKEN" in line]


@pytest.mark.parametrize("line", ["APP_PORT: 5001", "APP_PORT", "export APP_PORT 5001", "APP_PROT: 5001"])
def test_a_setting_in_another_spelling_is_reported_with_its_line(tmp_path: Path, line: str) -> None:
    path = env_file(tmp_path, f"# settings\n\n{line}\n")
    with pytest.raises(SettingsError, match=re.escape(f"{path}:3: APP_P")):
        load_settings(path)


def test_a_duplicate_setting_is_reported(tmp_path: Path) -> None:
    path = env_file(tmp_path, "APP_PORT=5001\nTZ=a\nTZ=b\n# more\nAPP_PORT=5002\n")
    loaded = read_settings(path)
    assert loaded.settings.app_port == 5002
    assert [line for line in loaded.remarks if "twice" in line or "already" in line] == [
        f"{path}:5: APP_PORT is already set in line 1; this line wins"
    ]


def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path: Path) -> None:
    assert load_settings(env_file(tmp_path, "\ufeffAPP_PORT=5001\n")).app_port == 5001


def test_a_binary_file_and_a_folder_are_reported(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes("APP_PORT=5001\n".encode("utf-16"))
    with pytest.raises(SettingsError, match="UTF-8"):
        load_settings(path)
    path.unlink()
    path.mkdir()
    assert read_settings(path).remarks == (f"{path}: isn't a file; no settings are read from it",)


def test_a_misspelt_setting_in_the_environment_only_logs_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = read_settings(None)
    monkeypatch.setenv("VLLM_BASE_PROT", "9100")
    monkeypatch.setenv("APP_COLOUR", "red")  # another program's
    loaded = read_settings(None)
    assert loaded.settings == before.settings
    assert [line for line in loaded.remarks if line.startswith("VLLM_BASE_PROT=9100")]
    assert not [line for line in loaded.remarks if "APP_COLOUR" in line]


def test_every_setting_is_its_own_closest_match(tmp_path: Path) -> None:
    lines = [f"{name}=" for name in sorted(NAMES)]
    assert read_env_file(env_file(tmp_path, "\n".join(lines)), NAMES).mistakes == ()


@pytest.mark.parametrize(
    ("one", "other", "typos"),
    [("port", "port", 0), ("prot", "port", 1), ("ports", "port", 1), ("pint", "port", 2), ("", "ab", 2)],
)
def test_the_edit_distance_counts_typos(one: str, other: str, typos: int) -> None:
    assert count_typos(one, other) == count_typos(other, one) == typos
