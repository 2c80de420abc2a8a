"""Whether models can be started, as far as that shows beforehand: flags, folders, programs, GPUs.

A start finds all of it as well; here it is found before anybody waits, or anything is stopped, for that.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

from instance_manager.backends import plan_launch
from instance_manager.config import ManagerConfig
from instance_manager.errors import ManagerError
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.fleet.scaler import spec_of
from instance_manager.lifecycle.specs import check_spec
from instance_manager.memory.gpu import Gpu
from instance_manager.memory.placement.local import choose_devices

_MOST_NAMES = 5  # in one line


def check_startable(profile: ModelProfile, config: ManagerConfig, gpus: Sequence[Gpu]) -> None:
    """Raises ManagerError for what no start of the model could get over. Blocks for milliseconds."""
    spec = spec_of(profile)
    check_spec(spec)
    count = plan_launch(spec, config).params.get("tensor_parallel_size", 1)
    if profile.devices:
        choose_devices(gpus, count if isinstance(count, int) else 1, 0, profile.devices)


def problem_of(profile: ModelProfile, config: ManagerConfig, gpus: Sequence[Gpu]) -> str | None:
    """Why the model can't be started, in a line; None where nothing shows."""
    try:
        check_startable(profile, config, gpus)
    except ManagerError as error:
        return error.message
    return None if profile.command is None else _problem_of_command(profile, config)


def grouped_problems(problems: Mapping[str, str]) -> list[str]:
    """A line for each problem, however many models have it. `problems`: by model."""
    models: dict[str, list[str]] = {}
    for name, problem in problems.items():
        models.setdefault(problem, []).append(name)
    return [f"{_listed(names)} can't be started: {problem}" for problem, names in models.items()]


def _problem_of_command(profile: ModelProfile, config: ManagerConfig) -> str | None:
    program, *arguments = profile.command or ("",)
    path = {**os.environ, **config.engine_env, **profile.env}.get("PATH")
    if "{" not in program and shutil.which(program, path=path) is None:
        where = "there is no such program" if "/" in program else "no folder in PATH has this program"
        return f"its command's {program!r}: {where}"
    if not any("{port}" in part for part in (program, *arguments)):
        return "its command has no {port}: it can't know where Berth expects it to listen"
    return None


def _listed(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"model {names[0]}"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"models {', '.join(names[:_MOST_NAMES])}{more}"
