"""vLLM, in an interpreter of its own: its dependencies may conflict with Berth's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from instance_manager.backends.base import LaunchPlan
from instance_manager.backends.engine_choice import ChoiceFacts, FileFormat
from instance_manager.backends.flag_check import check_vllm_flags, with_switches
from instance_manager.backends.log_patterns import ANY_SERVER, LogPatterns
from instance_manager.backends.params import merge_params
from instance_manager.backends.sleep_style import SLEEP_TIMEOUT_S, WAKE_TIMEOUT_S, EngineCall, SleepStyle
from instance_manager.backends.vllm_like import VllmLike
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec
from instance_manager.memory.checkpoint_size import ModelLoad, Overhead
from instance_manager.memory.kv_cache_size import Machine, number
from instance_manager.types import FailureClass, InstanceSpec

_GIB = 1 << 30
_CPU_CACHE_GIB = 4.0

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


class VllmSleep(SleepStyle):
    """Waking a vLLM from level 2 by `/wake_up` alone leaves it with weights that were never loaded.

    Its `/health` says 200 all the same: so they are loaded in between, and one token is requested at the end.
    """

    def to_wake(self, level: int, served_name: str) -> Sequence[EngineCall]:
        probe = {"model": served_name, "prompt": "a", "max_tokens": 1, "temperature": 0}
        check = EngineCall("/v1/completions", SLEEP_TIMEOUT_S, body=probe)
        if level < 2:
            return (*super().to_wake(level, served_name), check)
        return (
            EngineCall("/wake_up", WAKE_TIMEOUT_S, {"tags": "weights"}),
            EngineCall("/collective_rpc", WAKE_TIMEOUT_S, body={"method": "reload_weights"}),
            EngineCall("/wake_up", WAKE_TIMEOUT_S, {"tags": "kv_cache"}),
            check,
        )


class VllmBackend(VllmLike):
    """`python -m vllm.entrypoints.openai.api_server` in the interpreter that VLLM_PYTHON names."""

    name = "vllm"
    in_image = ()
    image = "vllm/vllm-openai:latest"
    settings = ("vllm_python", "vllm_default_trust_remote_code")
    log_patterns = ANY_SERVER | LogPatterns(
        signs=(
            (
                FailureClass.UNSUPPORTED_MODEL,
                r"Model architectures .* (are not supported for now|failed to be inspected)"
                r"|has no vLLM implementation",
            ),
            (
                FailureClass.OUT_OF_MEMORY,
                r"no available memory for the cache blocks|larger than the available KV cache memory",
            ),
        ),
        noise=(r"Avg prompt throughput: ",),
    )
    overhead = Overhead(2 * _GIB, 2 * _GIB)  # two processes; CUDA graphs
    takes_modalities = True
    unlimited_tokens = None

    def plan(self, spec: InstanceSpec, config: ManagerConfig) -> LaunchPlan:
        python = config.options.get("vllm_python")
        if python is None and spec.runtime is None:
            raise InvalidSpec(
                "engine 'vllm' needs VLLM_PYTHON: set it to the Python interpreter of the environment "
                "that has vLLM installed, or run it in a container (`runtime: docker`)",
                param="engine",
            )
        self.check_params(spec, config)
        trusts = config.options.get("vllm_default_trust_remote_code")
        own = {"trust_remote_code": True} if trusts else {}
        params = with_switches(merge_params(config.default_params, own, spec.params))
        program: Sequence[str] = self.in_image
        if spec.runtime is None and python is not None:
            check_vllm_flags(params, spec.params, python)
            program = [python, "-m", "vllm.entrypoints.openai.api_server"]
        can_sleep = bool(params.get("enable_sleep_mode"))
        return replace(
            self.launch_plan(spec, config, program, params, _WITHOUT_NEGATION),
            env={"VLLM_SERVER_DEV_MODE": "1"} if can_sleep else {},  # enables its sleep routes
            sleep_style=VllmSleep() if can_sleep else None,
        )

    def calls_tools(self, params: Mapping[str, Any]) -> bool:
        return bool(params.get("enable_auto_tool_choice"))

    def problems_of_settings(self, options: Mapping[str, Any], *, is_default: bool) -> Iterator[str]:
        python = options.get("vllm_python")
        if python is None:
            if is_default:
                yield "DEFAULT_ENGINE=vllm: needs VLLM_PYTHON, the interpreter with vLLM installed"
        elif shutil.which(python) is None:
            what = "can't be run" if Path(python).exists() else "doesn't exist"
            yield f"VLLM_PYTHON={python}: {what}; name the Python interpreter with vLLM installed"

    def reason_to_choose(self, facts: ChoiceFacts) -> str | None:
        if facts.file_format is FileFormat.GGUF or facts.options.get("vllm_python") is None:
            return None
        if facts.file_format is FileFormat.UNKNOWN or not facts.has_gpu():
            return None
        return "safetensors, a GPU, and VLLM_PYTHON is set"

    def default_cpu_cache(self, load: ModelLoad, machine: Machine) -> int:
        return int(number(load.environ.get("VLLM_CPU_KVCACHE_SPACE"), _CPU_CACHE_GIB) * _GIB)
