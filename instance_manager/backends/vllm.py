"""vLLM, in an interpreter of its own: its dependencies may conflict with Berth's."""

from __future__ import annotations

from instance_manager.backends.base import (
    LaunchPlan,
    SleepStyle,
    check_vllm_like,
    owned_flags,
    runner_of,
    served_name,
)
from instance_manager.backends.flag_check import check_vllm_flags
from instance_manager.backends.model_paths import find_model
from instance_manager.backends.params import merge_params, to_flags
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec
from instance_manager.types import InstanceSpec

# vLLM builds its flags from dataclass fields with BooleanOptionalAction; these few are plain switches.
_WITHOUT_NEGATION = frozenset(
    {
        "allow-credentials",
        "disable-log-stats",
        "disable-uvicorn-access-log",
        "enable-prompt-tokens-details",
        "enable-server-load-tracking",
        "headless",
        "return-tokens-as-token-ids",
    }
)


class VllmBackend:
    """`python -m vllm.entrypoints.openai.api_server` in the interpreter that VLLM_PYTHON names."""

    name = "vllm"

    def plan(self, spec: InstanceSpec, config: ManagerConfig) -> LaunchPlan:
        if config.vllm_python is None:
            raise InvalidSpec(
                "engine 'vllm' needs VLLM_PYTHON: set it to the Python interpreter of the environment "
                "that has vLLM installed",
                param="engine",
            )
        check_vllm_like(spec, config)
        python = config.vllm_python
        params = merge_params(config.default_params, config.vllm_params, spec.params)
        check_vllm_flags(params, spec.params, python)
        name = served_name(params, spec.model_name)
        model = find_model(spec.model_name, config.model_dirs)
        flags = to_flags(
            params | {"served_model_name": params.get("served_model_name", name)},
            lambda flag: flag not in _WITHOUT_NEGATION,
        )

        def argv(host: str, port: int) -> list[str]:
            module = "vllm.entrypoints.openai.api_server"
            return [python, "-m", module, *flags, *owned_flags(model, host, port)]

        can_sleep = bool(params.get("enable_sleep_mode"))
        return LaunchPlan(
            argv,
            params,
            name,
            health_path=spec.health_path or "/health",
            env={"VLLM_SERVER_DEV_MODE": "1"} if can_sleep else {},  # enables its sleep routes
            sleep_style=SleepStyle.VLLM if can_sleep else None,
            runner=runner_of(params, model),
        )
