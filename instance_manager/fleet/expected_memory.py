"""How much memory an instance will hold: what was measured, and what its checkpoint's files suggest."""

from __future__ import annotations

import os

from host_limits.host_memory import host_available_bytes
from instance_manager.backends import backend_of, plan_launch
from instance_manager.backends.model_paths import find_model
from instance_manager.config import ManagerConfig
from instance_manager.errors import ManagerError, ModelNotFound
from instance_manager.lifecycle.instance import Instance
from instance_manager.memory.checkpoint_size import Estimate, read_load
from instance_manager.memory.gpu import GpuDriver
from instance_manager.memory.kv_cache_size import Machine
from instance_manager.memory.measurements import Footprint, MeasuredKind, Measurements, params_fingerprint
from instance_manager.memory.placement.local import num_gpus_of
from instance_manager.process.environment import child_environment
from instance_manager.process.hub_cache import hub_cache
from instance_manager.types import InstanceSpec


class ExpectedMemory:
    """Knows nothing of budgets or of other instances."""

    def __init__(self, config: ManagerConfig, measurements: Measurements, driver: GpuDriver) -> None:
        self._config = config
        self._measurements = measurements
        self._driver = driver
        self._estimates: dict[tuple[MeasuredKind, bool], Estimate] = {}  # by kind, and whether kept off GPUs

    def of_spec(self, spec: InstanceSpec, level: int = 0) -> Footprint | None:
        """From measurements and the checkpoint's files; None if neither is available."""
        kind = kind_of(spec)
        peak = self._measurements.peak(kind, level)
        if peak is not None and (level > 0 or not backend_of(spec.engine).allocates_on_use):
            return peak  # an estimate would not change it
        key = (kind, spec.devices == ())
        # Once a peak is known, only those parts of an estimate count that don't change from time to time.
        guess = self._estimates.get(key) if peak is not None else None
        if guess is None and (guess := self.estimate(spec)) is not None:
            self._estimates[key] = guess
        return peak if guess is None else guess.expected(peak, level)

    def of_instance(self, one: Instance, level: int = 0) -> Footprint | None:
        """The same for an existing instance, whose files may be gone: then its measured peak."""
        try:
            return self.of_spec(one.spec, level)
        except ManagerError:
            return self._measurements.peak(kind_of(one.spec), level)

    def estimate(self, spec: InstanceSpec) -> Estimate | None:
        """From the checkpoint's files alone. Raises ManagerError for a spec that can't be started."""
        params = plan_launch(spec, self._config).params
        gpus = () if spec.devices == () else self._driver.list_gpus()
        count = min(len(gpus), num_gpus_of(params))
        machine = Machine(
            host_available_bytes=host_available_bytes(),
            num_gpus=count,
            gpu_total_bytes=gpus[0].total_bytes if gpus else 0,
        )
        environ = child_environment(os.environ, self._config.engine_env, spec.env)
        backend = backend_of(spec.engine)
        try:
            model = find_model(spec.model_name, self._config.model_dirs, hub_cache(environ))
        except ModelNotFound:
            if backend.finds_model:
                raise
            return None
        load = read_load(model, params, environ)
        return None if load is None else backend.estimate(load, machine)


def kind_of(spec: InstanceSpec) -> MeasuredKind:
    return MeasuredKind(
        spec.model_name, spec.engine, params_fingerprint(spec.params, len(spec.devices or ()))
    )
