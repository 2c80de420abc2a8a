"""Checks before a start whether models can be started: flags, folders, programs, GPUs.

A start finds the same problems; these checks find them before a request waits or an instance is evicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from instance_manager.backends import backend_of, plan_launch
from instance_manager.backends.checkpoint import Checkpoint
from instance_manager.config import ManagerConfig
from instance_manager.errors import ManagerError
from instance_manager.fleet.next_replica import spec_of
from instance_manager.fleet.profiles import ModelProfile, ModelSource
from instance_manager.lifecycle.spawning import runtime_environment
from instance_manager.lifecycle.specs import check_spec
from instance_manager.memory.gpu import Gpu
from instance_manager.memory.placement.local import choose_devices, num_gpus_of
from instance_manager.process.containers import check
from instance_manager.process.containers.command import ContainerPlan

_MAX_NAMES = 5  # in one line


def check_startable(profile: ModelProfile, config: ManagerConfig, gpus: Sequence[Gpu]) -> None:
    """Raises ManagerError for a problem that would fail every start. Blocks for milliseconds."""
    spec = spec_of(profile)
    check_spec(spec)
    count = num_gpus_of(plan_launch(spec, config).params)
    if profile.devices:
        choose_devices(gpus, count, 0, profile.devices)


def problem_of(profile: ModelProfile, config: ManagerConfig, gpus: Sequence[Gpu]) -> str | None:
    """Why the model can't be started, in one line; None where no problem is found."""
    return entry_problem(profile, config, gpus) or problem_of_files(profile, config)


def entry_problem(profile: ModelProfile, config: ManagerConfig, gpus: Sequence[Gpu]) -> str | None:
    """A problem with the model's entry, whatever its files are."""
    try:
        check_startable(profile, config, gpus)
    except ManagerError as error:
        return error.message
    return _in_container(profile, config, check.problem_of) or backend_of(profile.engine).problem_of_start(
        spec_of(profile), config
    )


def remark_on(profile: ModelProfile, config: ManagerConfig) -> str | None:
    """What the operator should know of a model that can be started, in one line."""
    said = _in_container(profile, config, check.remark_on)
    return None if said is None else f"model {profile.name}: {said}"


def _in_container(
    profile: ModelProfile,
    config: ManagerConfig,
    question: Callable[[ContainerPlan, Mapping[str, str]], str | None],
) -> str | None:
    """The answer for the model's container; None if it has none."""
    if profile.runtime is None:
        return None
    plan = plan_launch(spec_of(profile), config).container
    return None if plan is None else question(plan, runtime_environment(config))


def problem_of_files(profile: ModelProfile, config: ManagerConfig) -> str | None:
    """A problem with the model's files, or with its flags beside them.

    Files count only for a model that models.yaml names: those in the folders may be meant for other programs.
    """
    try:
        checkpoint = Checkpoint.of(spec_of(profile), config)
    except ManagerError:
        return None  # a problem of the entry
    if checkpoint is None:
        return None
    is_named = profile.source is not ModelSource.DISCOVERED
    return (checkpoint.problem if is_named else None) or checkpoint.flag_problem


def problems_by_name(
    profiles: Iterable[ModelProfile], find: Callable[[ModelProfile], str | None]
) -> dict[str, str]:
    """Of the models in which `find` finds one."""
    found = {one.name: find(one) for one in profiles}
    return {name: problem for name, problem in found.items() if problem is not None}


def grouped_problems(problems: Mapping[str, str]) -> list[str]:
    """One line per problem, however many models have it. `problems`: by model."""
    models: dict[str, list[str]] = {}
    for name, problem in problems.items():
        models.setdefault(problem, []).append(name)
    return [f"{_listed(names)} can't be started: {problem}" for problem, names in models.items()]


def _listed(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"model {names[0]}"
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"models {', '.join(names[:_MAX_NAMES])}{more}"
