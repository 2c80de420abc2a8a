"""Any server command: an argv template with the placeholders `{port}`, `{host}` and `{model}`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from instance_manager.backends.base import LaunchPlan
from instance_manager.backends.runner_kind import runner_of_command
from instance_manager.config import ManagerConfig
from instance_manager.errors import InvalidSpec
from instance_manager.types import InstanceSpec

_PLACEHOLDER = re.compile(r"\{(port|host|model)\}")


class CommandBackend:
    """Runs the given command without a shell; requests only the engine's health."""

    name = "command"

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
        )


def _checked(spec: InstanceSpec) -> tuple[str, ...]:
    command = spec.command
    if not isinstance(command, Sequence) or isinstance(command, str) or not command:
        raise InvalidSpec(
            "engine 'command' needs `command`: a list of arguments with the placeholders {port}, {host} and "
            "{model}",
            param="command",
        )
    if not all(isinstance(part, str) and "\0" not in part for part in command) or not command[0]:
        raise InvalidSpec("command must be a list of strings, the program's name first", param="command")
    if spec.params:
        raise InvalidSpec(
            "engine 'command' takes no params: put them into `command` as arguments", param="params"
        )
    return tuple(command)
