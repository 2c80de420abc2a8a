"""text-embeddings-inference: `text-embeddings-router`, for models that embed, classify or rank.

Written from its documentation and source, and tested with a fake: none has run behind it yet.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from instance_manager.backends.base import Backend, EngineRoutes, LaunchPlan
from instance_manager.backends.log_patterns import ANY_SERVER, LogPatterns
from instance_manager.backends.model_paths import find_model
from instance_manager.backends.params import check_params, merge_params, to_flags
from instance_manager.backends.runner_kind import RunnerKind
from instance_manager.backends.vllm_like import served_name
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec
from instance_manager.memory.checkpoint_size import Overhead
from instance_manager.types import FailureClass, InstanceSpec

_MIB = 1 << 20
_PROGRAM = "text-embeddings-router"
_OWNED = frozenset(
    {
        "model_id",
        "hostname",
        "port",
        "p",
        "uds_path",
        "api_key",
        "prometheus_port",
        "hf_token",
        "hf_api_token",
    }
)
_DTYPES = {"half": "float16", "float": "float32"}
# What other engines need to be told, and it has no flag for.
_LEFT_OUT = ("trust_remote_code", "gpu_memory_utilization", "runner", "convert", "task", "kv_cache_dtype")
_C = FailureClass


class TeiBackend(Backend):
    """Takes its flags as they are; switches have no `--no-` form."""

    name = "tei"
    takes_llama_fields = False
    in_image = ()
    remark = "text-embeddings-inference"
    settings = ("tei_server",)
    api_key_variable = "API_KEY"
    without_sleep = "is a text-embeddings-router, which can't be put to sleep"
    log_patterns = ANY_SERVER | LogPatterns(
        signs=(
            (_C.UNSUPPORTED_MODEL, r"Model is not supported|unknown variant .* expected one of|`model_type`"),
            (_C.MODEL_NOT_FOUND, r"Could not (download|find)|status client error \(404"),
        ),
        reasons=((_C.BAD_ARGUMENTS, r"error: (?P<reason>(?:unexpected argument|invalid value) .+)"),),
    )
    routes = EngineRoutes(
        requests="/embed /embed_all /embed_sparse /similarity /predict /tokenize /decode /vertex",
        reads="/info /ping",
    )
    overhead = Overhead(256 * _MIB, 1024 * _MIB)

    def plan(self, spec: InstanceSpec, config: ManagerConfig) -> LaunchPlan:
        program = _program(config.options) if spec.runtime is None else None
        if program is None and spec.runtime is None:
            raise InvalidSpec(
                f"engine 'tei' needs {_PROGRAM}: set TEI_SERVER to it, or put it on PATH", param="engine"
            )
        check_params(spec.params, _OWNED)
        params = merge_params({}, spec.params)
        name = served_name(params, spec.model_name)
        model = find_model(spec.model_name, config.model_dirs)
        flags = to_flags(_translated(params, name), lambda flag: False)

        def argv(host: str, port: int) -> list[str]:
            own = ["--model-id", model, "--hostname", host, "--port", str(port)]
            # Of the part that computes, where that is a process of its own: one for each instance.
            return [
                *([] if program is None else [program]),
                *flags,
                *own,
                "--uds-path",
                f"/tmp/berth-tei-{port}",  # noqa: S108
            ]

        return LaunchPlan(
            argv,
            params,
            name,
            health_path=spec.health_path or "/health",
            must_name_model=False,  # it has no /v1/models
            env={"PROMETHEUS_PORT": "0"},  # by default all instances would want port 9000
            runner=RunnerKind.POOLING,
        )

    def problems_of_settings(self, options: Mapping[str, Any], *, is_default: bool) -> Iterator[str]:
        named = options.get("tei_server")
        if named is not None and shutil.which(named) is None:
            yield f"TEI_SERVER={named}: can't be run; name {_PROGRAM}"
        elif is_default and _program(options) is None:
            yield f"DEFAULT_ENGINE=tei: needs {_PROGRAM}, by TEI_SERVER or on PATH"


def _program(options: Mapping[str, Any]) -> str | None:
    return shutil.which(options.get("tei_server") or _PROGRAM)


def _translated(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Merged parameters by its names. Raises InvalidSpec."""
    for refused in ("max_model_len", "lora_modules", "enable_lora", "chat_template"):
        if params.get(refused):
            message = f"params.{refused} can't be set for engine 'tei': it has nothing like that"
            raise InvalidSpec(message, param=f"params.{refused}")
    flags = {key: value for key, value in params.items() if key not in _LEFT_OUT}
    dtype = flags.pop("dtype", "auto")
    if dtype != "auto":
        flags["dtype"] = _DTYPES.get(dtype, dtype)
    return {**flags, "served_model_name": name}
