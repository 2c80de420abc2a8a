"""What an instance of the embedded engine would load, and whether it can run that: known before a start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instance_manager.backends import plan_launch
from instance_manager.backends.model_paths import find_model
from instance_manager.config import ManagerConfig
from instance_manager.errors import UnsupportedModel
from instance_manager.memory.checkpoint_problem import problem_of
from instance_manager.memory.checkpoint_size import locate
from instance_manager.process.environment import child_environment
from instance_manager.types import InstanceSpec


class Checkpoint:
    """Files and the flags that are read with them; looked at again only when they have changed."""

    def __init__(self, model: str, params: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        """`model`: a path or a hub id; `params` as merged."""
        self._model = model
        self._params = params
        self._environ = environ
        self._seen: tuple[Path, int, int] | None = None
        self._problem: str | None = None

    @classmethod
    def of(cls, spec: InstanceSpec, config: ManagerConfig) -> Checkpoint | None:
        """None for other engines, which know best themselves. Raises InvalidSpec and ModelNotFound."""
        if spec.engine != "engine":
            return None
        params = plan_launch(spec, config).params
        environ = child_environment(os.environ, config.engine_env, spec.env)
        return cls(find_model(spec.model_name, config.model_dirs), params, environ)

    @property
    def problem(self) -> str | None:
        """Why it can't be run; None where nothing is known. Blocks for a moment, and seldom longer."""
        path = locate(self._model, self._environ, self._params.get("revision"))
        if path is None:
            return None
        seen = (path, _changed_at(path), _changed_at(path / "config.json"))
        if seen != self._seen:
            is_hub_id = not Path(self._model).is_absolute()
            self._seen, self._problem = seen, problem_of(path, self._params, may_download=is_hub_id)
        return self._problem


def check_can_run(spec: InstanceSpec, config: ManagerConfig) -> None:
    """Raise UnsupportedModel for a checkpoint that the engine would refuse; InvalidSpec and ModelNotFound."""
    checkpoint = Checkpoint.of(spec, config)
    if checkpoint is not None and (problem := checkpoint.problem) is not None:
        raise unsupported(spec.model_name, problem)


def unsupported(name: str, problem: str) -> UnsupportedModel:
    return UnsupportedModel(f"model {name!r} can't be run: {problem}", param="model")


def _changed_at(path: Path) -> int:
    """Nanoseconds; 0 where nothing is."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
