"""Which replica of a model is woken or started next, and what it will serve. Waits for nothing."""

from __future__ import annotations

from dataclasses import replace

from instance_manager.backends import backend_of, plan_launch
from instance_manager.backends.runner_kind import RunnerKind, can_serve
from instance_manager.errors import InstanceNotRunning, ManagerError
from instance_manager.fleet.models import Model
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.lifecycle.instance import Instance
from instance_manager.manager import InstanceManager
from instance_manager.types import InstanceSpec

AT_ONCE_S = 0.001  # the idle timeout of an instance that a request has unloaded; 0 means never


class NextReplica:
    """Of any model."""

    def __init__(self, manager: InstanceManager) -> None:
        self._manager = manager

    def own_runner(self, model: Model) -> RunnerKind | None:
        """The runner that the catalog, or the checkpoint, selects for the model; None = unknown."""
        return None if model.profile is None else self.runner_of(None, spec_of(model.profile))

    def can_bring_up(self, model: Model, need: RunnerKind | None) -> bool:
        """Whether a replica that serves this need could be started or woken, memory aside."""
        if any(can_serve(one.runner, need) for one in model.live):
            return True
        spec = self.spec_of_next(model, need)
        if spec is None:
            return not model.live
        return can_serve(self.runner_of(None, spec), need)

    def spec_of_next(self, model: Model, need: RunnerKind | None) -> InstanceSpec | None:
        """The spec of the next replica; None where nothing is left to start."""
        if model.profile is not None:
            return spec_of(model.profile)
        ended = self._startable(model)
        fitting = [one for one in ended if can_serve(one.runner, need)]
        return (fitting or ended)[-1].spec if ended else None

    def runner_of(self, sleeping: Instance | None, spec: InstanceSpec | None) -> RunnerKind | None:
        if sleeping is not None:
            return sleeping.runner
        try:
            return None if spec is None else plan_launch(spec, self._manager.config).runner
        except ManagerError:  # the start will report the reason
            return None

    def need_of(self, model: Model) -> RunnerKind | None:
        """What the next replica has to serve."""
        for need in model.queue.needs:
            if not model.is_up_for(need):
                return need
        return self.own_runner(model)

    def instance_to_wake(self, model: Model, need: RunnerKind | None) -> Instance | None:
        """Prefers an instance that requests address by its id."""
        asleep = [one for one in model.live if self._manager.is_asleep(one.instance_id)]
        addressed = [one for one in asleep if one.gate.queued]
        return next(iter(addressed + [one for one in asleep if can_serve(one.runner, need)]), None)

    def start(self, model: Model, spec: InstanceSpec | None) -> Instance:
        """Start an ended replica again, or create a new one. Raises ManagerError."""
        if spec is None:
            raise InstanceNotRunning(f"model {model.name!r} has no instance left to start")
        # An instance that was created without naming GPUs matches a spec for which Berth chose some.
        unplaced = replace(spec, devices=None)
        same = [one for one in self._startable(model) if one.spec in (spec, unplaced)]
        if not same:
            return self._manager.create(spec)
        self._reset_timeout(same[-1])
        return self._manager.start(same[-1].instance_id, on_demand=model.backoff.has_failures)

    def _reset_timeout(self, ended: Instance) -> None:
        """A request's `keep_alive: 0` was about the run that has ended, not about the next one."""
        if 0 < ended.idle_timeout_s <= AT_ONCE_S:
            own = ended.spec.timeout_s
            default = self._manager.config.default_idle_timeout_s
            self._manager.patch(ended.instance_id, idle_timeout_s=default if own is None else own)

    def is_current(self, model: Model, one: Instance) -> bool:
        """Whether the instance is what the catalog now says of the model; also where it says nothing."""
        if model.profile is None:
            return True
        return replace(one.spec, devices=None) == replace(spec_of(model.profile), devices=None)

    def _startable(self, model: Model) -> list[Instance]:
        """Ended replicas, except those being deleted and those that the catalog has dropped."""
        ended = [one for one in model.replicas.values() if one.state.is_terminal]
        return [one for one in ended if self._is_kept(model, one)]

    def _is_kept(self, model: Model, one: Instance) -> bool:
        is_from_catalog = one.spec.profile is not None
        is_dropped = is_from_catalog and model.profile is None
        return not is_dropped and not self._manager.is_being_deleted(one.instance_id)

    def may_come_back(self, model: Model, need: RunnerKind | None) -> bool:
        """Whether a replica is just stopping, and can be started again, or is restarting by itself."""
        closed = [one for one in model.live if not one.gate.is_open and can_serve(one.runner, need)]
        return any(self._is_kept(model, one) for one in closed)


def spec_of(profile: ModelProfile) -> InstanceSpec:
    """The spec of a replica of the profile. It serves the profile's name."""
    params = dict(profile.params)
    if backend_of(profile.engine).takes_params:
        params.setdefault("served_model_name", profile.name)
    return InstanceSpec(
        model_name=profile.model,
        engine=profile.engine,
        params=params,
        timeout_s=profile.idle_timeout_s,
        profile=profile.name,
        engine_reason=profile.engine_reason,
        **profile.replica_options(),
    )
