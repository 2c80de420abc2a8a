"""The embedded engine: `python -m engine`, in Berth's own interpreter."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from instance_manager.backends.base import (
    LaunchPlan,
    SleepStyle,
    check_vllm_like,
    owned_flags,
    runner_of,
    served_name,
)
from instance_manager.backends.flag_check import check_engine_flags
from instance_manager.backends.model_paths import find_model
from instance_manager.backends.params import merge_params, to_flags
from instance_manager.config import ManagerConfig
from instance_manager.types import InstanceSpec

_ROOT = Path(__file__).resolve().parents[2]  # the directory that holds the package `engine`


class EngineBackend:
    """Takes vLLM's flags; every switch has a `--no-` form."""

    name = "engine"

    def plan(self, spec: InstanceSpec, config: ManagerConfig) -> LaunchPlan:
        check_vllm_like(spec, config)
        defaults = {"enable_sleep_mode": True, **config.engine_params}
        params = merge_params(defaults, config.default_params, spec.params)
        check_engine_flags(params, spec.params, _ROOT)
        name = served_name(params, spec.model_name)
        model = find_model(spec.model_name, config.model_dirs)
        flags = to_flags(
            params | {"served_model_name": params.get("served_model_name", name)}, lambda _: True
        )

        def argv(host: str, port: int) -> list[str]:
            return [sys.executable, "-m", "engine", *flags, *owned_flags(model, host, port)]

        search_path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        return LaunchPlan(
            argv,
            params,
            name,
            health_path=spec.health_path or "/health",
            env={"PYTHONPATH": search_path},
            sleep_style=SleepStyle.ENGINE if params.get("enable_sleep_mode") else None,
            runner=runner_of(params, model),
            isolates_tenants=True,
            cwd=str(
                _ROOT
            ),  # `-m` searches the working directory first: exclude other packages named "engine"
        )
