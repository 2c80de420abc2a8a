"""SGLang, in an interpreter of its own: its dependencies may conflict with Berth's.

Written from its documentation and source, and tested with a fake: no SGLang has run behind it yet.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from instance_manager.backends.base import Backend, EngineRoutes, LaunchPlan
from instance_manager.backends.log_patterns import ANY_SERVER, LogPatterns
from instance_manager.backends.model_paths import find_model
from instance_manager.backends.params import check_params, merge_params, to_flags
from instance_manager.backends.progress_metrics import ProgressMetrics
from instance_manager.backends.runner_kind import RunnerKind
from instance_manager.backends.vllm_like import OWNED_PARAMS, runner_of, served_name
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec
from instance_manager.memory.checkpoint_size import ModelLoad, Overhead
from instance_manager.memory.kv_cache_size import Machine, kv_cache_bytes
from instance_manager.types import FailureClass, InstanceSpec

_GIB = 1 << 30
_KEY_VARIABLE = "SGLANG_API_KEY"
# It takes its key as an argument only, which every user of the machine could read in the process list.
_START = (
    "import os, runpy, sys; "
    f"sys.argv += ['--api-key', os.environ['{_KEY_VARIABLE}']]; "
    "runpy.run_module('sglang.launch_server', run_name='__main__', alter_sys=True)"
)
# Names that all engines share, and SGLang's for them.
_NAMES = {
    "max_model_len": "context_length",
    "gpu_memory_utilization": "mem_fraction_static",
    "max_num_seqs": "max_running_requests",
    "seed": "random_seed",
}
_OWNED = (OWNED_PARAMS - {"root_path"}) | {"config", "nccl_port", "ssl_key_file"}


class SglangBackend(Backend):
    """Takes its flags as they are. None has a `--no-` form: what is false is left out."""

    name = "sglang"
    takes_llama_fields = False
    in_image = ("python3", "-c", _START)
    image = "lmsysorg/sglang:latest"
    settings = ("sglang_python",)
    api_key_variable = _KEY_VARIABLE
    without_sleep = "is an SGLang server, which Berth can't put to sleep"
    progress = ProgressMetrics(
        pending=("sglang:num_running_reqs", "sglang:num_queue_reqs"),
        steps=("sglang:prompt_tokens_total", "sglang:generation_tokens_total"),
    )
    log_patterns = ANY_SERVER | LogPatterns(
        signs=(
            (FailureClass.UNSUPPORTED_MODEL, r"Model architectures .* are not supported for now"),
            (FailureClass.OUT_OF_MEMORY, r"Not enough memory\. Please try to increase --mem-fraction-static"),
        ),
        noise=(r"(Decode|Prefill) batch",),
    )
    routes = EngineRoutes(
        requests="/generate /encode /v1/score /v1/classify /classify /v1/tokenize /tokenize "
        "/v1/detokenize /detokenize",
        reads="/get_model_info /model_info",
        control="/flush_cache /abort_request /update_weights_from_disk /release_memory_occupation "
        "/resume_memory_occupation /load_lora_adapter /unload_lora_adapter /start_profile /stop_profile "
        "/get_server_info /server_info /metrics /pause_generation /continue_generation",
    )
    overhead = Overhead(3 * _GIB, 2 * _GIB)  # several processes; CUDA graphs

    def plan(self, spec: InstanceSpec, config: ManagerConfig) -> LaunchPlan:
        python = config.options.get("sglang_python")
        program = self.in_image
        if spec.runtime is None:
            if python is None:
                raise InvalidSpec(
                    "engine 'sglang' needs SGLANG_PYTHON: set it to the Python interpreter of the "
                    "environment that has SGLang installed, or run it in a container (`runtime: docker`)",
                    param="engine",
                )
            program = (python, "-c", _START)
        check_params(spec.params, _OWNED)
        params = merge_params({"enable_metrics": True}, spec.params)
        name = served_name(params, spec.model_name)
        model = find_model(spec.model_name, config.model_dirs)
        runner = runner_of(params, model)
        flags = to_flags(_translated(params, name, runner), lambda flag: False)

        def argv(host: str, port: int) -> list[str]:
            own = ["--model-path", model, "--host", host, "--port", str(port)]
            return [*program, *flags, *own]

        return LaunchPlan(argv, params, name, health_path=spec.health_path or "/health", runner=runner)

    def problems_of_settings(self, options: Mapping[str, Any], *, is_default: bool) -> Iterator[str]:
        python = options.get("sglang_python")
        if python is None:
            if is_default:
                yield "DEFAULT_ENGINE=sglang: needs SGLANG_PYTHON, the interpreter with SGLang installed"
        elif shutil.which(python) is None:
            yield f"SGLANG_PYTHON={python}: can't be run; name the Python interpreter with SGLang installed"

    def kv_cache_bytes(self, load: ModelLoad, machine: Machine, fixed_bytes: int) -> int:
        return kv_cache_bytes(load.params, load.config, machine, fixed_bytes, lambda: 0)


def _translated(params: Mapping[str, Any], name: str, runner: RunnerKind | None) -> dict[str, Any]:
    """Merged parameters by SGLang's names. Raises InvalidSpec."""
    if params.get("lora_modules"):
        message = (
            "params.lora_modules can't be set for engine 'sglang': it picks an adapter by a request's "
            "lora_path, not by its model; name adapters in lora_paths"
        )
        raise InvalidSpec(message, param="params.lora_modules")
    for common, own in _NAMES.items():
        if common in params and own in params:
            message = f"params.{common} and params.{own} say the same; keep one"
            raise InvalidSpec(message, param=f"params.{own}")
    left_out = ("runner", "convert", "task", "lora_modules")
    flags = {_NAMES.get(key, key): value for key, value in params.items() if key not in left_out}
    if runner is RunnerKind.POOLING:
        flags.setdefault("is_embedding", True)
    return {**flags, "served_model_name": name}
