"""What engines with vLLM's command line and routes have in common."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from instance_manager.backends.base import Backend, EngineRoutes, LaunchPlan
from instance_manager.backends.model_paths import find_model
from instance_manager.backends.params import check_params, to_flags
from instance_manager.backends.progress_metrics import ProgressMetrics
from instance_manager.backends.runner_kind import RunnerKind, runner_of_checkpoint, runner_of_params
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec
from instance_manager.memory.checkpoint_size import ModelLoad
from instance_manager.memory.kv_cache_size import Machine, kv_cache_bytes
from instance_manager.process.environment import child_environment
from instance_manager.process.hub_cache import hub_cache
from instance_manager.types import InstanceSpec

# Flags that decide where an engine listens, what it loads and which clients it accepts.
OWNED_PARAMS = frozenset(
    {
        "model",
        "model_path",
        "model_tag",
        "host",
        "port",
        "uds",
        "api_key",
        "root_path",
        "ssl_keyfile",
        "ssl_certfile",
        "ssl_ca_certs",
        "ssl_cert_reqs",
    }
)


class VllmLike(Backend):
    """Flags, counters, routes and KV cache as in vLLM."""

    takes_llama_fields = False
    without_sleep = "was started without --enable-sleep-mode"
    progress = ProgressMetrics(
        pending=("vllm:num_requests_running", "vllm:num_requests_waiting"),
        steps=(
            "vllm:prompt_tokens_total",
            "vllm:generation_tokens_total",
            "vllm:iteration_tokens_total_count",
        ),
    )
    routes: ClassVar[EngineRoutes] = EngineRoutes(
        requests="/v1/chat/completions/batch /v1/chat/completions/render /v1/completions/render "
        "/v2/embed /v2/rerank /v1/score /score /v1/classify /classify /v1/pooling /pooling "
        "/v1/tokenize /tokenize /v1/detokenize /detokenize /v1/generate /inference/v1/generate /invocations",
        reads="/ping /version",
        control="/sleep /wake_up /is_sleeping /collective_rpc /reset_prefix_cache /reset_mm_cache "
        "/reset_encoder_cache /pause /resume /is_paused /scale_elastic_ep /is_scaling_elastic_ep "
        "/start_profile /stop_profile /v1/load_lora_adapter /v1/unload_lora_adapter "
        "/inference/v1/abort_requests /metrics /memory /server_info",
        sleep="/sleep",
        asleep="/is_sleeping",
    )

    def check_params(self, spec: InstanceSpec, config: ManagerConfig) -> None:
        """Raise InvalidSpec for params that no engine with vLLM's command line can get."""
        check_params(spec.params, OWNED_PARAMS)
        try:
            check_params(config.default_params, OWNED_PARAMS)
        except InvalidSpec as error:
            raise InvalidSpec(f"{error.message} (set in the file VLLM_CONFIG)", param=error.param) from None

    def launch_plan(
        self,
        spec: InstanceSpec,
        config: ManagerConfig,
        program: Sequence[str],
        params: Mapping[str, Any],
        plain_switches: frozenset[str] = frozenset(),
    ) -> LaunchPlan:
        """The plan for `program` with merged, checked params. Plain switches have no `--no-` form."""
        name = served_name(params, spec.model_name)
        cache = hub_cache(child_environment(os.environ, config.engine_env, spec.env))
        model = find_model(spec.model_name, config.model_dirs, cache)
        named = {**params, "served_model_name": params.get("served_model_name", name)}
        flags = to_flags(named, lambda flag: flag not in plain_switches)

        def argv(host: str, port: int) -> list[str]:
            # Berth's flags come last: in argparse the last one wins, even over abbreviations.
            return [*program, *flags, "--model", model, "--host", host, "--port", str(port)]

        health_path, runner = spec.health_path or "/health", runner_of(params, model)
        return LaunchPlan(argv, params, name, health_path=health_path, runner=runner)

    def kv_cache_bytes(self, load: ModelLoad, machine: Machine, fixed_bytes: int) -> int:
        return kv_cache_bytes(
            load.params, load.config, machine, fixed_bytes, lambda: self.default_cpu_cache(load, machine)
        )

    @abstractmethod
    def default_cpu_cache(self, load: ModelLoad, machine: Machine) -> int:
        """Bytes of the KV cache on a CPU, if no flag says so."""


def served_name(params: Mapping[str, Any], model_name: str) -> str:
    """The name that the engine serves: the first of `served_model_name`, or the model as requested."""
    value = params.get("served_model_name", model_name)
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n for n in names):
        raise InvalidSpec(
            "params.served_model_name must be a name or a list of names", param="params.served_model_name"
        )
    return str(names[0])


def runner_of(params: Mapping[str, Any], model: str) -> RunnerKind | None:
    """What an engine with vLLM's flags serves. `model`: a folder, or a hub id, which isn't looked up."""
    found = runner_of_params(params)
    return runner_of_checkpoint(Path(model)) if found is None and model.startswith("/") else found
