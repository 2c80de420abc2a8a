"""What an instance would load, and whether its engine can run that: known before a start."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from instance_manager.backends import Backend, backend_of, plan_launch
from instance_manager.backends.model_paths import find_model
from instance_manager.backends.params import adapters_of
from instance_manager.config import ManagerConfig
from instance_manager.errors import (
    InvalidSpec,
    ManagerError,
    ModelNotFound,
    UnsupportedModel,
    without_folders,
)
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
        self._checked_flags: tuple[tuple[Path, int], ...] | None = None
        self._flag_problem: str | None = None

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
        path = self._path
        if path is None:
            return None
        beside = path.parent if path.suffix == ".gguf" else path / "config.json"  # other parts may be added
        version = (path, _modified_ns(path), _modified_ns(beside))
        if version != self._checked:
            is_hub_id = not Path(self._model).is_absolute()
            self._problem = self._backend.problem_of_files(path, self._params, may_download=is_hub_id)
            self._checked = version
        return self._problem

    @property
    def flag_problem(self) -> str | None:
        """Why the flags don't fit the model, or the files they name; None if no problem is known."""
        path = self._path
        files = self._backend.files_beside_flags(path, self._params)
        version = tuple((file, _modified_ns(file)) for file in files)
        if version != self._checked_flags:
            self._flag_problem = self._backend.problem_of_flags(path, self._params)
            self._checked_flags = version
        return self._flag_problem

    def refusal(self, name: str, *, param: str = "model") -> ManagerError | None:
        """For requests of the model `name`, whose field `param` led here: any start would fail now."""
        if (problem := self.problem) is not None:
            message, public = self._texts(name, problem)
            return UnsupportedModel(message, param="model", public=public)
        if (problem := self.flag_problem) is not None:
            message, public = self._texts(name, problem)
            return InvalidSpec(message, param=param, public=public)
        return None

    def _texts(self, name: str, problem: str) -> tuple[str, str]:
        message = f"model {name!r} can't be run: {problem}"
        return message, without_folders(message, *self.paths)

    @property
    def paths(self) -> Iterator[str]:
        """Of the model and its adapters; some may be no paths of this machine."""
        yield self._model
        yield from (path for _, path in adapters_of(self._params) if isinstance(path, str))

    @property
    def _path(self) -> Path | None:
        return locate(self._model, self._environ, self._params.get("revision"))


def check_can_run(spec: InstanceSpec, config: ManagerConfig) -> None:
    """Raise what a start would: UnsupportedModel, InvalidSpec for flags that don't fit, or ModelNotFound."""
    checkpoint = Checkpoint.of(spec, config)
    if (unknown := backend_of(spec.engine).problem_of_name(spec, config)) is not None:
        raise ModelNotFound(unknown, param="model_name")
    if (
        checkpoint is not None
        and (refusal := checkpoint.refusal(spec.model_name, param="params")) is not None
    ):
        raise refusal


def _modified_ns(path: Path) -> int:
    """Modification time; 0 for a missing file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
