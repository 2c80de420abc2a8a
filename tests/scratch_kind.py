"""An engine kind in one file, as those in instance_manager/backends/: it runs tests/fake_engine.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from instance_manager.backends.base import Backend, EngineRoutes, LaunchPlan
from instance_manager.backends.log_patterns import ANY_SERVER, LogPatterns
from instance_manager.backends.model_paths import find_model
from instance_manager.backends.params import merge_params, to_flags
from instance_manager.backends.progress_metrics import ProgressMetrics
from instance_manager.backends.sleep_style import EngineCall, SleepStyle
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec
from instance_manager.memory.checkpoint_size import ModelLoad, Overhead
from instance_manager.memory.kv_cache_size import Machine, quantity
from instance_manager.types import FailureClass, InstanceSpec
from tests.fake_engine import FAKE_ENGINE

_FLAGS = frozenset({"chunk_delay", "fail_with", "metrics_page"})
_CACHE = "cache_gib"  # no flag of the engine: its cache, for the estimate


class ScratchSleep(SleepStyle):
    """Its routes for sleep have names of their own."""

    status = EngineCall("/scratch/awake", 5.0, method="GET")

    def to_sleep(self, level: int) -> Sequence[EngineCall]:
        return (EngineCall("/scratch/nap", 5.0, {"level": str(level)}),)

    def to_wake(self, level: int, served_name: str) -> Sequence[EngineCall]:
        return (EngineCall("/scratch/drain", 5.0), EngineCall("/scratch/rise", 5.0))


class ScratchBackend(Backend):
    """Each fact differs from those of the other kinds."""

    name = "scratch"
    remark = "in a test"
    settings = ("unknown_fields",)
    api_key_variable = "SCRATCH_KEY"
    metrics_path = "/scratch/metrics"
    progress = ProgressMetrics(pending=("scratch:jobs",), steps=("scratch:ticks",))
    log_patterns = ANY_SERVER | LogPatterns(
        reasons=((FailureClass.UNSUPPORTED_MODEL, r"scratch can't: (?P<reason>.+)"),)
    )
    routes = EngineRoutes(
        requests="/scratch/**",
        control="/scratch/drain /scratch/nap /scratch/awake",
        sleep="/scratch/nap",
        asleep="/scratch/awake",
    )
    overhead = Overhead(64 << 20, 64 << 20)

    def plan(self, spec: InstanceSpec, config: ManagerConfig) -> LaunchPlan:
        params = merge_params({}, spec.params)
        name = str(params.pop("served_model_name", spec.model_name))
        for flag in params:
            if flag not in (*_FLAGS, _CACHE):
                raise InvalidSpec(f"params.{flag}: scratch has no such flag", param=f"params.{flag}")
        model = find_model(spec.model_name, config.model_dirs)
        flags = to_flags({flag: params[flag] for flag in params if flag in _FLAGS}, lambda _: False)

        def argv(host: str, port: int) -> list[str]:
            own = ["--model", model, "--host", host, "--port", str(port), "--served-model-name", name]
            key = ["--check-key", "--key-variable", self.api_key_variable]
            return [sys.executable, "-S", FAKE_ENGINE, *flags, *own, *key]

        return LaunchPlan(
            argv,
            params,
            name,
            env={"SCRATCH_FIELDS": config.options["unknown_fields"]},
            sleep_style=ScratchSleep(),
        )

    def kv_cache_bytes(self, load: ModelLoad, machine: Machine, fixed_bytes: int) -> int:
        return (quantity(load.params.get(_CACHE)) or 0) << 30
