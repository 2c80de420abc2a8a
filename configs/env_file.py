"""The file `.env`, which is rarely Berth's alone: which of its variables are settings, which are for engines,
which are mistakes, and which are none of Berth's business.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from io import StringIO
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from dotenv.parser import Binding, parse_stream

from configs.bounded_file import read_bounded
from configs.near_names import nearest

ENCODING = "utf-8-sig"  # some editors begin a file with a mark that would else be part of the first name

# Variables that may stand in .env although they are no settings of ours: engines read them.
_ENGINE_PREFIXES = (
    "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "CUDA_", "HIP_", "ROCR_", "NVIDIA_", "NCCL_", "GLOO_",
    "OMP_", "MKL_", "KMP_", "TORCH_", "PYTORCH_", "TRITON_", "VLLM_", "LD_", "TOKENIZERS_",
    "LLAMA_ARG_", "GGML_", "OLLAMA_", "SGLANG_", "OPENBLAS_", "RAY_", "FLASHINFER_",
)  # fmt: skip
_ENGINE_NAMES = frozenset(
    {
        *("NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CXX", "XDG_CACHE_HOME"),
        "BERTH_NATIVE_KERNELS",
    }
)
SDK_PREFIX = "OTEL_"  # read by OpenTelemetry's SDK itself, in Berth's own process

# What begins as settings of ours do, and is read by nobody else.
_OUR_PREFIXES = ("VLLM_DEFAULT_", "VLLM_MAX_", "BERTH_", "APP_", "API_KEYS", "ADMIN_API_KEY")
# Names that look like ours and are others': of our own command line and compose file; of vLLM; of the web
# frameworks that call their settings APP_…; of Open WebUI.
_OTHERS = frozenset(
    {
        *("BERTH_URL", "BERTH_API_KEY", "BERTH_PYTHON"),
        *("BERTH_ADDRESS", "BERTH_MODELS", "BERTH_HUB_CACHE", "BERTH_KEY_FILE"),
        *("APP_NAME", "APP_ENV", "APP_KEY", "APP_URL", "APP_SECRET", "APP_VERSION"),
        *("APP_LOCALE", "APP_TIMEZONE"),
        "DEFAULT_MODELS",
    }
)
_VLLM_PREFIXES = (
    "VLLM_MAX_AUDIO_", "VLLM_MAX_IMAGE_", "VLLM_MAX_VIDEO_", "VLLM_MAX_TOKENS_PER_EXPERT_", "VLLM_MAX_EMBED_",
    "VLLM_MAX_COMPLETION_", "VLLM_MAX_N_", "VLLM_MAX_STOP_",
)  # fmt: skip
# What Berth decides for each engine, and what is to be set in its place.
_DECIDED = {
    "VLLM_API_KEY": "Berth gives each engine a key of its own; who may ask Berth, API_KEYS says",
    "VLLM_PORT": "Berth gives each engine a port, from VLLM_BASE_PORT on",
}
# What a service that Berth grew out of was told by the environment, and the field that it is here.
FORMER_NAMES: Mapping[str, str] = {"SERVICE_PORT": "app_port", "MODEL_NAME": "default_model"}

_SECRET_NAME = re.compile("KEYS?$|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_FIRST_WORD = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)")


class Owner(Enum):
    """Whose a variable is."""

    SETTING = auto()
    ENGINE = auto()
    SDK = auto()
    OTHER = auto()
    NOBODY = auto()  # it looks like a setting and is none: a mistake


def owner_of(name: str, settings: Collection[str]) -> Owner:
    """Whose a variable of this name is; `settings` are the names of ours, in capitals."""
    if name.upper() in settings or name.upper() in FORMER_NAMES:
        return Owner.SETTING
    if name in _OTHERS:
        return Owner.OTHER
    if name in _ENGINE_NAMES or name.startswith(_VLLM_PREFIXES):
        return Owner.ENGINE
    if name.upper().startswith(_OUR_PREFIXES) or nearest(name.upper(), settings) is not None:
        return Owner.NOBODY
    if name.startswith(_ENGINE_PREFIXES):
        return Owner.ENGINE
    return Owner.SDK if name.startswith(SDK_PREFIX) else Owner.OTHER


def hint(name: str, settings: Collection[str]) -> str:
    """What somebody who wrote a name that is no setting may have meant."""
    if close := nearest(name.upper(), settings):
        return f"did you mean {close}?"
    if name.upper().startswith(("VLLM_DEFAULT_", "VLLM_MAX_")):
        return "parameters of engines stand in models.yaml, in the file VLLM_CONFIG or in a request's params"
    return "env.example lists every setting"


def shown(name: str, value: Any) -> str:
    """A value for a message; `***` where the name says that it is a secret."""
    return "***" if _SECRET_NAME.search(name) else str(value)


@dataclass(frozen=True, slots=True)
class EnvFile:
    """The file as read. `path` is None where there is none that can be."""

    path: Path | None
    variables: Mapping[str, str]
    mistakes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    others: tuple[str, ...] = ()  # names that are none of Berth's business

    def for_engines(self, settings: Collection[str]) -> dict[str, str]:
        return {
            name: value
            for name, value in self.variables.items()
            if name not in _DECIDED and owner_of(name, settings) is Owner.ENGINE
        }


def read_env_file(path: Path | None, settings: Collection[str]) -> EnvFile:
    """What doesn't concern Berth is left alone; what looks as if it did, and doesn't, is a mistake."""
    if path is None or not path.exists():
        return EnvFile(None, {})
    if not path.is_file():
        return EnvFile(None, {}, remarks=(f"{path}: is no file, so no setting comes from it",))
    try:
        text = read_bounded(path).decode(ENCODING)
    except UnicodeDecodeError:
        return EnvFile(None, {}, mistakes=(f"{path}: is no text in UTF-8",))
    except OSError as error:
        return EnvFile(None, {}, mistakes=(f"{path}: {error.strerror or error}",))
    values = dotenv_values(path, encoding=ENCODING)
    variables = {name: value for name, value in values.items() if value is not None}
    bindings = list(parse_stream(StringIO(text)))
    mistakes = [*_unreadable(bindings, path, settings, ours=True), *_unknown(variables, path, settings)]
    remarks = [
        *_unreadable(bindings, path, settings, ours=False),
        *_doubles(bindings, path, settings),
        *(f"{name} in {path}: has no effect: {_DECIDED[name]}" for name in variables if name in _DECIDED),
    ]
    others = [name for name in variables if owner_of(name, settings) is Owner.OTHER]
    return EnvFile(path, variables, tuple(mistakes), tuple(remarks), tuple(others))


def nearly_settings(environ: Mapping[str, str], settings: Collection[str]) -> Iterator[str]:
    """Remarks about the environment's variables that are nearly settings. It is full of others' names."""
    for name, value in environ.items():
        is_ours = name.upper() in settings or name in _OTHERS or name in _ENGINE_NAMES
        if is_ours or name.startswith(_VLLM_PREFIXES):
            continue
        if name.startswith("VLLM_DEFAULT_") or nearest(name.upper(), settings):
            yield f"{name}={shown(name, value)}: no such setting ({hint(name, settings)}), in the environment"


def former_names(variables: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """By field, the name and value of what is said by a former name alone; the environment wins."""
    given = {name.upper(): value for name, value in (*variables.items(), *environ.items()) if value}
    return {
        field: (name, given[name])
        for name, field in FORMER_NAMES.items()
        if name in given and field.upper() not in given
    }


def _unknown(variables: Mapping[str, str], path: Path, settings: Collection[str]) -> Iterator[str]:
    for name, value in variables.items():
        if owner_of(name, settings) is Owner.NOBODY:
            yield f"{name}={shown(name, value)}: no such setting ({hint(name, settings)}), in {path}"


def _unreadable(
    bindings: list[Binding], path: Path, settings: Collection[str], *, ours: bool
) -> Iterator[str]:
    """Lines that set nothing, as they are no `NAME=value`. No value is shown: it may be a secret."""
    for binding in bindings:
        if not binding.error and (binding.key is None or binding.value is not None):
            continue
        start = len(binding.original.string) - len(binding.original.string.lstrip())
        line = binding.original.line + binding.original.string[:start].count("\n")
        word = _FIRST_WORD.match(binding.original.string)
        name = word[1] if word else ""
        if ours == (owner_of(name, settings) in (Owner.SETTING, Owner.NOBODY)):
            what = f"{name}: " if name else ""
            yield f"{path}:{line}: {what}sets nothing; a line is written NAME=value"


def _doubles(bindings: list[Binding], path: Path, settings: Collection[str]) -> Iterator[str]:
    lines: dict[str, int] = {}
    for binding in bindings:
        name = (binding.key or "").upper()
        if name in settings:
            line = binding.original.line + binding.original.string.partition(binding.key or "")[0].count("\n")
            if name in lines:
                yield f"{path}:{line}: {name} stands in line {lines[name]} already; this one holds"
            lines[name] = line
