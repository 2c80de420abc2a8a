"""The fields of a model's entry in models.yaml. Knows nothing of the file's text or of an entry's use."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from configs.engine_kinds import EngineKinds, one_of
from configs.extra_args import parse_extra_args
from configs.home import expand_home

_CONTAINER_FIELDS = ("image", "volumes", "gpus", "run_args")
_FLAG_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# A chat template is either a file or, with one of these in it, the template itself.
_TEMPLATE_CHARACTERS = frozenset("{}\n")


def _split(value: Any) -> Any:
    """`0,1` and a single number are lists as well; numbers in a list become names."""
    if isinstance(value, str):
        return tuple(filter(None, (part.strip() for part in value.split(","))))
    if isinstance(value, int) and not isinstance(value, bool):
        return (str(value),)
    if isinstance(value, list | tuple):
        return tuple(str(item) if type(item) is int else item for item in value)
    return value


def _as_text(value: Any) -> Any:
    """Numbers in `env` become text; true and false are ambiguous and stay an error."""
    if not isinstance(value, Mapping):
        return value
    return {name: str(item) if type(item) in (int, float) else item for name, item in value.items()}


def _number_as_text(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _to_path(value: Any) -> Any:
    return expand_home(value) if isinstance(value, str) and value else value


def _finite(value: Any) -> Any:
    """Refuse values that JSON can't represent, as requests and flags are JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        _finite(item)
    return value


Text = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Text, ...], BeforeValidator(_to_tuple, json_schema_input_type=list[str])]
NameList = Annotated[
    tuple[Text, ...], BeforeValidator(_split, json_schema_input_type=list[str | int] | str | int)
]
Environment = Annotated[
    dict[Text, str], BeforeValidator(_as_text, json_schema_input_type=dict[str, str | int | float])
]
FolderPath = Annotated[Path, BeforeValidator(_to_path, json_schema_input_type=Text)]
JsonObject = Annotated[dict[str, Any], BeforeValidator(_finite, json_schema_input_type=dict[str, Any])]
Flags = Annotated[
    dict[str, Any],
    BeforeValidator(parse_extra_args, json_schema_input_type=list[str | int | float] | dict[str, Any]),
]


class _Strict(BaseModel):
    """YAML has its own types: `"8"` isn't a number and `1` isn't true."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Filters(_Strict):
    """Changes to each request's body before the engine gets it."""

    set_params: JsonObject = Field({}, description="Fields to set in each request's body")
    strip_params: NameList = Field((), description="Fields to remove from each request's body")


class ModelDefaults(_Strict):
    """Fields of one model and, under `defaults:`, of all models."""

    # Checked with the EngineKinds in the validation's context; without one, a name isn't checked.
    engine: Text | None = Field(
        None, description="The engine that serves it; default: DEFAULT_ENGINE, or command if `command` is set"
    )
    params: JsonObject = Field({}, description="Any of the engine's flags; null removes an inherited one")
    extra_args: Flags = Field({}, description="Flags in command-line form, or as a mapping; `params` win")
    devices: NameList | None = Field(None, description="GPUs by number or UUID; default: Berth chooses")
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="The fraction of a GPU's memory that the engine may use"
    )
    max_model_len: int | None = Field(
        None, ge=1, description="Maximum number of tokens of a prompt and its completion"
    )
    tensor_parallel_size: int | None = Field(
        None, ge=1, description="GPUs that share each layer; with the embedded engine on a CPU, processes"
    )
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] | None = Field(
        None, description="The type of the weights in memory"
    )
    trust_remote_code: bool | None = Field(
        None, description="Let the engine run code that comes with the model"
    )
    chat_template: Text | None = Field(None, description="A Jinja file, or the template itself")
    response_role: Text | None = Field(None, description="The role in chat responses")
    timeout: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Seconds without a request until it expires; 0 = never"
    )
    expire_action: Literal["stop", "sleep1", "sleep2"] | None = Field(
        None,
        description="What to do when it expires: stop it, or free its KV cache (1), or also its weights (2)",
    )
    min_replicas: int = Field(0, ge=0, description="Minimum number of running instances")
    max_replicas: int = Field(1, ge=1, validate_default=True, description="Maximum number of instances")
    pinned: bool = Field(False, description="Never expires and is never evicted for another model")
    concurrency_limit: int = Field(
        0, ge=0, description="Maximum number of requests in flight per instance; 0 = MAX_IN_FLIGHT"
    )
    env: Environment = Field({}, description="Environment variables of the engine")
    command: Annotated[Names, Field(min_length=1)] | None = Field(
        None, description="For the engine `command`: program and arguments, with {port}, {model}, {host}"
    )
    stop_command: Annotated[Names, Field(min_length=1)] | None = Field(
        None,
        description="For the engine `command`: a command that ends it, with {pid}, {port}, {model}, {host}",
    )
    health_path: Annotated[str, Field(pattern=r"^/[^\s]*$")] | None = Field(
        None, description="The engine's health route; default: /health"
    )
    runtime: Literal["docker", "podman", "process"] | None = Field(
        None, description="Run the engine in a container; `process`: not in one, whatever the defaults say"
    )
    image: Text | None = Field(None, description="The container's image; default: the engine's own, if any")
    volumes: Names = Field(
        (), description="Further folders in the container: `/here:/there` or `/here:/there:ro`"
    )
    gpus: Annotated[Text, BeforeValidator(_number_as_text)] | None = Field(
        None, description="GPUs in the container: all, none, a number or device=ID,ID; default: `devices`"
    )
    run_args: Names = Field(
        (), description="Further flags of `docker run`, with {port}, {host}, {model} filled in"
    )
    protocol: Text | None = Field(None, description="A protocol adapter; default: OpenAI's protocol")
    filters: Filters = Field(Filters.model_validate({}), description="Changes to each request's body")
    preload: bool = Field(False, description="Start it together with Berth")

    @field_validator("engine", mode="before")
    @classmethod
    def _check_engine(cls, engine: Any, info: ValidationInfo) -> Any:
        kinds: EngineKinds | None = info.context
        if engine is None or kinds is None or engine in kinds.for_models:
            return engine
        expected = {"expected": one_of(kinds.for_models)}
        raise PydanticCustomError("literal_error", "Input should be {expected}", expected)

    @field_validator("params")
    @classmethod
    def _check_params(cls, params: dict[str, Any]) -> dict[str, Any]:
        spellings: dict[str, str] = {}
        for name in params:
            if not _FLAG_NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} isn't a valid flag name: letters, digits, '_' and '-', a letter first"
                )
            other = spellings.setdefault(name.replace("-", "_"), name)
            if other != name:
                raise ValueError(f"{other!r} and {name!r} are the same flag; keep one")
        return params

    @field_validator("devices")
    @classmethod
    def _check_devices(cls, devices: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for device in devices or ():
            if "," in device or (devices or ()).count(device) > 1:
                raise ValueError(f"must list each device once, by number or UUID; check {device!r}")
        return devices

    @field_validator("max_replicas")
    @classmethod
    def _check_replicas(cls, maximum: int, info: ValidationInfo) -> int:
        minimum = info.data.get("min_replicas", 0)
        if maximum < minimum:
            raise ValueError(f"must be min_replicas ({minimum}) or more")
        return maximum

    @field_validator("env")
    @classmethod
    def _check_env(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if "=" in name or "\0" in name or "\0" in value:
                raise ValueError(f"{name!r} can't be an environment variable")
        return env

    @model_validator(mode="before")
    @classmethod
    def _imply_engine(cls, data: Any, info: ValidationInfo) -> Any:
        kinds: EngineKinds | None = info.context
        if kinds and isinstance(data, Mapping) and data.get("command") and data.get("engine") is None:
            return {**data, "engine": kinds.by_command}
        return data

    @model_validator(mode="before")
    @classmethod
    def _leave_container(cls, data: Any) -> Any:
        """An entry without a container inherits nothing about one."""
        if not isinstance(data, Mapping) or data.get("runtime") != "process":
            return data
        return {name: value for name, value in data.items() if name not in ("runtime", *_CONTAINER_FIELDS)}

    @model_validator(mode="after")
    def _check_command(self, info: ValidationInfo) -> Self:
        kinds: EngineKinds | None = info.context
        if kinds is None:
            return self
        by_command = kinds.by_command
        if self.engine == by_command and self.command is None and self.runtime is None:
            raise ValueError(
                f"`engine: {by_command}` needs a `command`, a list such as [llama-server, --port, '{{port}}']"
            )
        for name in ("command", "stop_command"):
            if self.engine != by_command and getattr(self, name) is not None:
                raise ValueError(f"`{name}` needs `engine: {by_command}`, not {self.engine}")
        return self


class ModelEntry(ModelDefaults):
    """One model, `defaults:` merged in and paths made absolute."""

    path: FolderPath | None = Field(
        None, description="The model's folder or GGUF file, relative to this file's folder"
    )
    model: Text | None = Field(
        None,
        description="A hub id, of GGUF files `owner/name:Q4_K_M`; default without `path`: the entry's name",
    )
    aliases: Names = Field((), description="Other names that clients can use")
    alias_params: dict[Text, JsonObject] = Field(
        {}, description="By alias: fields to set in the body of each request that uses this name"
    )
    metadata: JsonObject = Field({}, description="Shown to clients in /v1/models, as it is")
    unlisted: bool = Field(False, description="Usable, but in no list of models for clients")

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.path is not None and self.model is not None:
            raise ValueError("`path` and `model` exclude each other; keep one")
        return self

    @model_validator(mode="after")
    def _check_container(self) -> Self:
        for name in _CONTAINER_FIELDS:
            if getattr(self, name) and self.runtime is None:
                raise ValueError(f"`{name}` needs a `runtime`: docker or podman")
        return self

    @model_validator(mode="after")
    def _check_alias_params(self) -> Self:
        if unknown := self.alias_params.keys() - set(self.aliases):
            raise ValueError(
                f"`alias_params` names {min(unknown)!r}, which isn't one of `aliases`; add it there"
            )
        return self

    @property
    def target(self) -> str:
        """What the engine loads: an absolute folder or a hub id; "" for an entry without a name yet."""
        return str(self.path) if self.path is not None else self.model or ""

    def engine_params(self) -> dict[str, Any]:
        """The engine's flags in snake_case: from fields, overridden by `extra_args` and then by `params`.

        None removes a flag that all engines get.
        """
        names = (
            "gpu_memory_utilization", "max_model_len", "tensor_parallel_size", "dtype",
            "trust_remote_code", "chat_template", "response_role",
        )  # fmt: skip
        fields = {name: value for name in names if (value := getattr(self, name)) is not None}
        params = {name.replace("-", "_"): value for name, value in self.params.items()}
        return fields | self.extra_args | params

    def located(self, name: str, folder: Path) -> Self:
        """The entry with paths made absolute, relative to `folder`; `model` is the name by default."""
        changes: dict[str, Any] = {}
        if self.path is not None:
            changes["path"] = Path(folder, self.path)
        elif self.model is None:
            changes["model"] = name
        if self.chat_template is not None and not _TEMPLATE_CHARACTERS & set(self.chat_template):
            changes["chat_template"] = str(Path(folder, expand_home(self.chat_template)))
        return self.model_copy(update=changes)
