"""What an instance would load, and whether its engine can run that: known before a start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instance_manager.backends import Backend, backend_of, plan_launch
from instance_manager.backends.model_paths import find_model
from instance_manager.config import ManagerConfig
from instance_manager.errors import ModelNotFound, UnsupportedModel
from instance_manager.memory.checkpoint_size import locate
from instance_manager.process.environment import child_environment
from instance_manager.process.hub_cache import hub_cache
from instance_manager.types import InstanceSpec


class Checkpoint:
    """Files and the flags that apply to them; files are read again only when they have changed."""

    def __init__(
        self, backend: Backend, model: str, params: Mapping[str, Any], environ: Mapping[str, str]
    ) -> None:
        """`model`: a path or a hub id; `params` as merged."""
        self._backend = backend
        self._model = model
        self._params = params
        self._environ = environ
        self._checked: tuple[Path, int, int] | None = None
        self._problem: str | None = None

    @classmethod
    def of(cls, spec: InstanceSpec, config: ManagerConfig) -> Checkpoint | None:
        """None for engines that check for themselves. Raises InvalidSpec and ModelNotFound."""
        backend = backend_of(spec.engine)
        if not backend.checks_files:
            return None
        params = plan_launch(spec, config).params
        environ = child_environment(os.environ, config.engine_env, spec.env)
        return cls(
            backend, find_model(spec.model_name, config.model_dirs, hub_cache(environ)), params, environ
        )

    @property
    def problem(self) -> str | None:
        """Why it can't be run; None if no problem is known. Usually blocks for a moment only."""
        path = locate(self._model, self._environ, self._params.get("revision"))
        if path is None:
            return None
        beside = path.parent if path.suffix == ".gguf" else path / "config.json"  # other parts may be added
        version = (path, _modified_ns(path), _modified_ns(beside))
        if version != self._checked:
            is_hub_id = not Path(self._model).is_absolute()
            self._problem = self._backend.problem_of_files(path, self._params, may_download=is_hub_id)
            self._checked = version
        return self._problem


def check_can_run(spec: InstanceSpec, config: ManagerConfig) -> None:
    """Raise UnsupportedModel for a checkpoint that the engine would refuse; or InvalidSpec, ModelNotFound."""
    checkpoint = Checkpoint.of(spec, config)
    if (unknown := backend_of(spec.engine).problem_of_name(spec, config)) is not None:
        raise ModelNotFound(unknown, param="model_name")
    if checkpoint is not None and (problem := checkpoint.problem) is not None:
        raise unsupported(spec.model_name, problem)


def unsupported(name: str, problem: str) -> UnsupportedModel:
    return UnsupportedModel(f"model {name!r} can't be run: {problem}", param="model")


def _modified_ns(path: Path) -> int:
    """Modification time; 0 for a missing file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
