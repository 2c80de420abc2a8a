"""Maps Berth's errors to exit codes and next steps for the user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli.errors import CliError, ExitCode
from cli.reach import WHERE

_NEXT_STEPS: Mapping[str, str] = {
    "invalid_api_key": "set BERTH_API_KEY or use --api-key",
    "admin_key_required": "set BERTH_API_KEY to it",
    "instance_not_found": "`berth ps --all` shows the instances",
    "model_not_found": "`berth list` shows the models, `berth pull OWNER/NAME` downloads one",
    "wrong_state": "`berth ps --all` shows the instances' states",
    "instance_not_running": "`berth start NAME` starts it",
    "instance_failed": "`berth logs NAME` shows the engine's output",
    "instance_starting": "it is still starting: `berth ps --watch` shows its progress",
    "sleep_failed": "`berth logs NAME` shows the engine's output",
    "no_capacity": "`berth ps` shows the running instances",  # the message itself has advice
    "unsupported_model": "`engine` in models.yaml selects the engine of a model",
    "invalid_catalog": "correct models.yaml, then `berth reload`",
}
_TYPES: Mapping[str, ExitCode] = {
    "not_found_error": ExitCode.NOT_FOUND,
    "authentication_error": ExitCode.NOT_ALLOWED,
}
_STATUSES: Mapping[int, ExitCode] = {
    401: ExitCode.NOT_ALLOWED,
    403: ExitCode.NOT_ALLOWED,
    404: ExitCode.NOT_FOUND,
}


def refusal(status: int, body: Any, *, url: str, retry_after: str | None = None) -> CliError:
    """The error for a response with this status and body."""
    error = error_in(body)
    exit_code = _STATUSES.get(status, ExitCode.REFUSED)
    if error is None:
        message = f"{url} answered {status}, but not as Berth does"
        return CliError(message, ExitCode.UNREACHABLE, next_step=WHERE)
    code = str(error.get("code"))
    next_step = _next_step(code, str(error["message"])) or (
        f"try again in {retry_after} s" if retry_after else None
    )
    return CliError(str(error["message"]), exit_code, next_step=next_step, error=error)


def _next_step(code: str, message: str) -> str | None:
    """No other engine helps with files that are damaged: the message says where one may."""
    if code == "unsupported_model" and "`engine: " not in message:
        return None
    return _NEXT_STEPS.get(code)


def refusal_in_stream(body: Any) -> CliError | None:
    """The error in a line of a stream; None if it has none."""
    error = error_in(body)
    if error is None:
        return None
    exit_code = _TYPES.get(str(error.get("type")), ExitCode.REFUSED)
    return CliError(str(error["message"]), exit_code, error=error)


def error_in(body: Any) -> dict[str, Any] | None:
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, str):  # as some engines send it
        return {"message": error, "type": None, "param": None, "code": None}
    return error if isinstance(error, dict) and "message" in error else None
