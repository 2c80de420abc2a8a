"""Any server command: an argv template with the placeholders `{port}`, `{host}` and `{model}`."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from functools import reduce
from operator import or_
from pathlib import Path

from instance_manager.backends.base import Backend, EngineRoutes, LaunchPlan
from instance_manager.backends.log_patterns import LogPatterns
from instance_manager.backends.progress_metrics import ProgressMetrics
from instance_manager.backends.runner_kind import runner_of_command
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec
from instance_manager.types import FailureClass, InstanceSpec

_CLOSING_PROGRAMS = frozenset({"llama-server"})  # see its own kind
_PLACEHOLDER = re.compile(r"\{(port|host|model)\}")

# Of llama.cpp's servers.
_LOG_PATTERNS = LogPatterns(
    signs=(
        (FailureClass.UNSUPPORTED_MODEL, r"unknown model architecture"),
        (FailureClass.MODEL_NOT_FOUND, r"model path does not exist"),
    )
)
_PROGRESS = ProgressMetrics(
    pending=("llamacpp:requests_processing",),
    steps=("llamacpp:prompt_tokens_total", "llamacpp:tokens_predicted_total"),
)


class CommandBackend(Backend):
    """Runs the given command without a shell; requests only the engine's health."""

    name = "command"
    takes_params = False
    runs_command = True
    finds_model = False
    in_image = ()
    # Of servers without a kind of their own: llama.cpp's, text-embeddings-inference, Ollama, SGLang.
    routes = EngineRoutes(
        requests="/completion /infill /apply-template /embedding /v1/reranking /reranking "
        "/embed /embed_all /embed_sparse /similarity /predict /generate /generate_stream "
        "/api/chat /api/generate /api/embed /api/embeddings",
        reads="/api/tags",
    )

    speaks = frozenset()  # it may be any server

    def __init__(self, others: Sequence[Backend]) -> None:
        """`others`: the command may be any of them, so their log lines and counters count."""
        self.log_patterns = reduce(or_, (one.log_patterns for one in others), _LOG_PATTERNS)
        known = [one.progress for one in others if one.progress is not None]
        self.progress = reduce(or_, known, _PROGRESS)

    def plan(self, spec: InstanceSpec, config: ManagerConfig) -> LaunchPlan:
        command = _checked(spec)
        model = spec.model_name

        def argv(host: str, port: int) -> list[str]:
            values = {"host": host, "port": str(port), "model": model}
            return [_PLACEHOLDER.sub(lambda match: values[match[1]], part) for part in command]

        return LaunchPlan(
            argv,
            {},
            spec.model_name,
            health_path=spec.health_path or "/health",
            must_name_model=False,
            runner=runner_of_command(command),
            keeps_connections=not command or Path(command[0]).name not in _CLOSING_PROGRAMS,
        )

    def problem_of_start(self, spec: InstanceSpec, config: ManagerConfig) -> str | None:
        if spec.runtime is not None:
            return _problem_in_container(spec)
        program, *arguments = spec.command or ("",)
        path = {**os.environ, **config.engine_env, **spec.env}.get("PATH")
        if "{" not in program and shutil.which(program, path=path) is None:
            where = "no such program" if "/" in program else "no such program in PATH"
            return f"its command's {program!r}: {where}"
        if not any("{port}" in part for part in (program, *arguments)):
            return "its command lacks {port}, the port that Berth expects it to listen on"
        return None


def _problem_in_container(spec: InstanceSpec) -> str | None:
    if any("{port}" in part for part in (*(spec.command or ()), *spec.run_args)):
        return None
    return "neither its command nor its run_args have {port}, the port that Berth expects it to listen on"


def _checked(spec: InstanceSpec) -> tuple[str, ...]:
    command = spec.command
    if not command and spec.runtime is None:  # an image has a command of its own
        raise InvalidSpec(
            "engine 'command' needs `command`: a list of arguments with the placeholders {port}, {host} and "
            "{model}",
            param="command",
        )
    if command:
        _check_argv(command, "command")
    if spec.stop_command is not None:
        _check_argv(spec.stop_command, "stop_command")
    if spec.params:
        raise InvalidSpec(
            "engine 'command' takes no params: put them into `command` as arguments", param="params"
        )
    return tuple(command or ())


def _check_argv(argv: object, name: str) -> None:
    parts = list(argv) if isinstance(argv, Sequence) and not isinstance(argv, str) else []
    if not parts or not all(isinstance(part, str) and "\0" not in part for part in parts) or not parts[0]:
        raise InvalidSpec(f"{name} must be a list of strings, the program's name first", param=name)
