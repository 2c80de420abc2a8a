"""The file `.env`, which is often shared with other programs: sorts its variables into settings, variables
for engines, mistakes and others. Names are case-insensitive.
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

ENCODING = "utf-8-sig"  # without a byte order mark, which would become part of the first name

# Variables for engines, which are allowed in .env although they aren't settings of ours.
_ENGINE_PREFIXES = (
    "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "CUDA_", "HIP_", "ROCR_", "NVIDIA_", "NCCL_", "GLOO_",
    "OMP_", "MKL_", "KMP_", "TORCH_", "PYTORCH_", "TRITON_", "VLLM_", "LD_", "TOKENIZERS_",
    "LLAMA_ARG_", "GGML_", "OLLAMA_", "SGLANG_", "OPENBLAS_", "RAY_", "FLASHINFER_",
)  # fmt: skip
_ENGINE_NAMES = frozenset(
    {
        *("NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CXX", "XDG_CACHE_HOME"),
        *("BERTH_NATIVE_KERNELS", "BERTH_TRITON_KERNELS", "BERTH_CUDA_GRAPHS", "BERTH_SCALED_PRODUCTS"),
    }
)
SDK_PREFIX = "OTEL_"  # read by OpenTelemetry's SDK in Berth's own process

# PrefixCache of our settings that no other program uses.
_OUR_PREFIXES = ("VLLM_DEFAULT_", "VLLM_MAX_", "BERTH_", "APP_", "API_KEYS", "ADMIN_API_KEY")
# Names that look like settings but belong to others: our command line and compose file, vLLM, web frameworks
# with settings named APP_…, Open WebUI, Ollama.
_OTHERS = frozenset(
    {
        *("BERTH_URL", "BERTH_API_KEY", "BERTH_PYTHON"),
        *("BERTH_ADDRESS", "BERTH_MODELS", "BERTH_HUB_CACHE", "BERTH_KEY_FILE"),
        *("APP_NAME", "APP_ENV", "APP_KEY", "APP_URL", "APP_SECRET", "APP_VERSION"),
        *("APP_LOCALE", "APP_TIMEZONE"),
        *("DEFAULT_MODELS", "OLLAMA_HOST"),
    }
)
_VLLM_PREFIXES = (
    "VLLM_MAX_AUDIO_", "VLLM_MAX_IMAGE_", "VLLM_MAX_VIDEO_", "VLLM_MAX_TOKENS_PER_EXPERT_", "VLLM_MAX_EMBED_",
    "VLLM_MAX_COMPLETION_", "VLLM_MAX_N_", "VLLM_MAX_STOP_",
)  # fmt: skip
# What Berth sets for each engine, and the setting to use instead.
_SET_BY_BERTH = {
    "VLLM_API_KEY": "Berth gives each engine a key of its own; API_KEYS are the keys for clients",
    "VLLM_PORT": "Berth gives each engine a port, starting at VLLM_BASE_PORT",
}
# Variables of Berth's predecessor, and the corresponding fields.
FORMER_NAMES: Mapping[str, str] = {"SERVICE_PORT": "app_port", "MODEL_NAME": "default_model"}

_SECRET_NAME = re.compile("KEYS?$|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_FIRST_WORD = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)")


class VariableKind(Enum):
    """Which program a variable is for."""

    SETTING = auto()
    ENGINE = auto()
    SDK = auto()
    OTHER = auto()
    UNKNOWN = auto()  # it looks like a setting but isn't: a mistake


def kind_of(name: str, settings: Collection[str]) -> VariableKind:
    """The kind of a variable; `settings`: the names of our settings in capitals."""
    name = name.upper()
    if name in settings or name in FORMER_NAMES:
        return VariableKind.SETTING
    if name in _OTHERS:
        return VariableKind.OTHER
    if name in _ENGINE_NAMES or name.startswith(_VLLM_PREFIXES):
        return VariableKind.ENGINE
    if name.startswith(_OUR_PREFIXES) or nearest(name, settings) is not None:
        return VariableKind.UNKNOWN
    if name.startswith(_ENGINE_PREFIXES):
        return VariableKind.ENGINE
    return VariableKind.SDK if name.startswith(SDK_PREFIX) else VariableKind.OTHER


def hint(name: str, settings: Collection[str]) -> str:
    """A suggestion for a name that isn't a setting."""
    if close := nearest(name.upper(), settings):
        return f"did you mean {close}?"
    if name.upper().startswith(("VLLM_DEFAULT_", "VLLM_MAX_")):
        return "engine parameters belong in models.yaml, in the file VLLM_CONFIG or in a request's params"
    return "env.example lists every setting"


def shown(name: str, value: Any) -> str:
    """A value for a message; `***` if its name suggests a secret."""
    return "***" if _SECRET_NAME.search(name) else str(value)


@dataclass(frozen=True, slots=True)
class EnvFile:
    """The file as read. `path` is None if there is no readable file."""

    path: Path | None
    variables: Mapping[str, str]
    mistakes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    others: tuple[str, ...] = ()  # names that belong to other programs

    def for_engines(self, settings: Collection[str]) -> dict[str, str]:
        """In capitals, as engines expect them."""
        return {
            name: value
            for name, value in self._in_capitals().items()
            if name not in _SET_BY_BERTH and kind_of(name, settings) is VariableKind.ENGINE
        }

    def for_sdk(self) -> dict[str, str]:
        return {name: value for name, value in self._in_capitals().items() if name.startswith(SDK_PREFIX)}

    def _in_capitals(self) -> dict[str, str]:
        lower_case = {name.upper(): value for name, value in self.variables.items() if name.islower()}
        return lower_case | {name: value for name, value in self.variables.items() if not name.islower()}


def read_env_file(path: Path | None, settings: Collection[str]) -> EnvFile:
    """Ignores others' variables; a name that looks like a setting but isn't is a mistake."""
    if path is None or not path.exists():
        return EnvFile(None, {})
    if not path.is_file():
        return EnvFile(None, {}, remarks=(f"{path}: isn't a file; no settings are read from it",))
    try:
        text = read_bounded(path).decode(ENCODING)
    except UnicodeDecodeError:
        return EnvFile(None, {}, mistakes=(f"{path}: isn't UTF-8 text",))
    except OSError as error:
        return EnvFile(None, {}, mistakes=(f"{path}: {error.strerror or error}",))
    values = dotenv_values(path, encoding=ENCODING)
    variables = {name: value for name, value in values.items() if value is not None}
    bindings = list(parse_stream(StringIO(text)))
    mistakes = [*_unreadable(bindings, path, settings, ours=True), *_unknown(variables, path, settings)]
    remarks = [
        *_unreadable(bindings, path, settings, ours=False),
        *_duplicates(bindings, path, settings),
        *(
            f"{name} in {path}: has no effect: {_SET_BY_BERTH[name.upper()]}"
            for name in variables
            if name.upper() in _SET_BY_BERTH
        ),
    ]
    others = [name for name in variables if kind_of(name, settings) is VariableKind.OTHER]
    return EnvFile(path, variables, tuple(mistakes), tuple(remarks), tuple(others))


def nearly_settings(environ: Mapping[str, str], settings: Collection[str]) -> Iterator[str]:
    """Remarks on environment variables that are nearly settings: mistakes or other programs' names."""
    for name, value in environ.items():
        capitals = name.upper()
        is_known = capitals in settings or capitals in _OTHERS or capitals in _ENGINE_NAMES
        if is_known or capitals.startswith(_VLLM_PREFIXES):
            continue
        if capitals.startswith("VLLM_DEFAULT_") or nearest(capitals, settings):
            yield f"{name}={shown(name, value)}: no such setting ({hint(name, settings)}), in the environment"


def former_names(variables: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """By field, name and value of settings given only by a former name; the environment wins."""
    given = {name.upper(): value for name, value in (*variables.items(), *environ.items()) if value}
    return {
        field: (name, given[name])
        for name, field in FORMER_NAMES.items()
        if name in given and field.upper() not in given
    }


def _unknown(variables: Mapping[str, str], path: Path, settings: Collection[str]) -> Iterator[str]:
    for name, value in variables.items():
        if kind_of(name, settings) is VariableKind.UNKNOWN:
            yield f"{name}={shown(name, value)}: no such setting ({hint(name, settings)}), in {path}"


def _unreadable(
    bindings: list[Binding], path: Path, settings: Collection[str], *, ours: bool
) -> Iterator[str]:
    """Lines that aren't `NAME=value`. Their values aren't shown: they may be secrets."""
    for binding in bindings:
        if not binding.error and (binding.key is None or binding.value is not None):
            continue
        start = len(binding.original.string) - len(binding.original.string.lstrip())
        line = binding.original.line + binding.original.string[:start].count("\n")
        word = _FIRST_WORD.match(binding.original.string)
        name = word[1] if word else ""
        if ours == (kind_of(name, settings) in (VariableKind.SETTING, VariableKind.UNKNOWN)):
            what = f"{name}: " if name else ""
            yield f"{path}:{line}: {what}sets nothing; write it as NAME=value"


def _duplicates(bindings: list[Binding], path: Path, settings: Collection[str]) -> Iterator[str]:
    lines: dict[str, int] = {}
    for binding in bindings:
        name = (binding.key or "").upper()
        if name in settings:
            line = binding.original.line + binding.original.string.partition(binding.key or "")[0].count("\n")
            if name in lines:
                yield f"{path}:{line}: {name} is already set in line {lines[name]}; this line wins"
            lines[name] = line
