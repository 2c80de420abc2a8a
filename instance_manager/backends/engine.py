"""The embedded engine: `python -m engine`, in Berth's own interpreter."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from instance_manager.backends import engine_memory
from instance_manager.backends.base import LaunchPlan
from instance_manager.backends.checkpoint_problem import problem_of
from instance_manager.backends.engine_choice import ChoiceFacts, FileFormat
from instance_manager.backends.flag_check import check_engine_flags, with_switches
from instance_manager.backends.flags_beside_files import files_read, problem_of_flags
from instance_manager.backends.log_patterns import ANY_SERVER, LogPatterns
from instance_manager.backends.model_paths import find_model
from instance_manager.backends.params import merge_params
from instance_manager.backends.sleep_style import SleepStyle
from instance_manager.backends.vllm_like import VllmLike
from instance_manager.config import ManagerConfig
from instance_manager.gguf.names import split_tag
from instance_manager.memory.checkpoint_size import Estimate, ModelLoad, locate
from instance_manager.memory.dequantised_size import dequantised
from instance_manager.memory.kv_cache_size import Machine
from instance_manager.process.environment import child_environment
from instance_manager.process.hub_cache import hub_cache, is_hub_offline
from instance_manager.types import FailureClass, InstanceSpec

_ROOT = Path(__file__).resolve().parents[2]  # the directory that holds the package `engine`


class EngineBackend(VllmLike):
    """Takes vLLM's flags; every switch has a `--no-` form."""

    name = "engine"
    in_image = ("/opt/venv/bin/python", "-m", "engine")  # as in the image that deploy/Dockerfile makes
    remark = "embedded"
    settings = ("unknown_fields",)
    # Its last line if it can't serve a model here: a complete explanation.
    log_patterns = ANY_SERVER | LogPatterns(
        reasons=(
            (
                FailureClass.UNSUPPORTED_MODEL,
                r" ERROR engine: (?:unsupported model|bad checkpoint): (?P<reason>.+)",
            ),
            (FailureClass.PORT_IN_USE, r" ERROR engine: port in use: (?P<reason>.+)"),
            (FailureClass.MODEL_NOT_FOUND, r" ERROR engine: model not found: (?P<reason>.+)"),
            (FailureClass.OUT_OF_MEMORY, r" ERROR engine: out of memory: (?P<reason>.+)"),
            (FailureClass.BAD_ARGUMENTS, r" ERROR engine: bad arguments: (?P<reason>.+)"),
        ),
        noise=(r" INFO engine\.(requests|stats): ",),
    )
    speaks = VllmLike.speaks | {
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/responses",
        "/v1/responses/input_tokens",
    }
    overhead = engine_memory.OVERHEAD
    allocates_on_use = True
    checks_files = True

    def plan(self, spec: InstanceSpec, config: ManagerConfig) -> LaunchPlan:
        self.check_params(spec, config)
        own = {name: config.options[name] for name in self.settings if name in config.options}
        params = with_switches(
            merge_params({"enable_sleep_mode": True, **own}, config.default_params, spec.params)
        )
        check_engine_flags(params, spec.params, _ROOT)
        if spec.runtime is not None:
            plan = self.launch_plan(spec, config, self.in_image, params)
            return replace(plan, **self._abilities(params))
        search_path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        return replace(
            self.launch_plan(spec, config, [sys.executable, "-m", "engine"], params),
            env={"PYTHONPATH": search_path},
            cwd=str(_ROOT),  # searched first by `-m`: exclude other packages named "engine"
            **self._abilities(params),
        )

    def _abilities(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of its plan, wherever it runs."""
        style = SleepStyle() if params.get("enable_sleep_mode") else None
        return {"sleep_style": style, "isolates_tenants": True}

    def reason_to_choose(self, facts: ChoiceFacts) -> str:
        if facts.file_format is FileFormat.GGUF:
            return "GGUF files, and no llama-server was found (LLAMA_SERVER): the embedded engine reads them"
        if facts.file_format is FileFormat.UNKNOWN:
            return "the embedded engine, as nothing here says what its files are"
        lacks = "VLLM_PYTHON isn't set" if facts.options.get("vllm_python") is None else "there is no GPU"
        return f"safetensors, and {lacks}, as vLLM would need: the embedded engine"

    def problem_of_start(self, spec: InstanceSpec, config: ManagerConfig) -> str | None:
        return self.problem_of_name(spec, config)

    def problem_of_name(self, spec: InstanceSpec, config: ManagerConfig) -> str | None:
        if self._located(spec, config) is not None:
            return None
        if split_tag(spec.model_name)[1] is not None:
            return f"model {spec.model_name!r} isn't on this machine: `berth pull {spec.model_name}` gets it"
        if not is_hub_offline(_environ(spec, config)):
            return None
        return (
            f"model {spec.model_name!r} is neither a path, nor a folder under MODEL_DIRS, nor in the hub "
            "cache, and HF_HUB_OFFLINE forbids a download"
        )

    def _located(self, spec: InstanceSpec, config: ManagerConfig) -> Path | None:
        """Its file or directory; None: it would have to be downloaded. Raises ModelNotFound."""
        environ = _environ(spec, config)
        return locate(find_model(spec.model_name, config.model_dirs, hub_cache(environ)), environ)

    def problem_of_files(self, path: Path, params: Mapping[str, Any], *, may_download: bool) -> str | None:
        return problem_of(path, params, may_download=may_download)

    def problem_of_flags(self, path: Path | None, params: Mapping[str, Any]) -> str | None:
        return problem_of_flags(path, params, _ROOT)

    def files_beside_flags(self, path: Path | None, params: Mapping[str, Any]) -> Iterable[Path]:
        return files_read(path, params, _ROOT)

    def estimate(self, load: ModelLoad, machine: Machine) -> Estimate:
        load = dequantised(load, keeps_8_bits=machine.num_gpus > 0)
        found = super().estimate(load, machine)
        return found if machine.num_gpus else engine_memory.on_a_cpu(found, load)

    def default_cpu_cache(self, load: ModelLoad, machine: Machine) -> int:
        return engine_memory.default_cpu_cache(load, machine)


def _environ(spec: InstanceSpec, config: ManagerConfig) -> Mapping[str, str]:
    return child_environment(os.environ, config.engine_env, spec.env)
