"""Classifies why an engine failed, from its exit and its last log lines. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Sequence

from instance_manager.errors import InstanceFailedToStart, ManagerError, UnsupportedModel
from instance_manager.types import FailureClass, InstanceFailure

LOG_TAIL_LINES = 20

_EXIT_USAGE = 2  # what argparse and most command-line programs exit with on wrong arguments

# The embedded engine's last line if it can't serve a model here: a complete explanation.
_REFUSED_CHECKPOINT = re.compile(r" ERROR engine: (?:unsupported model|bad checkpoint): (?P<reason>.+)")
_REFUSED_FOR_MEMORY = re.compile(r" ERROR engine: out of memory: (?P<reason>.+)")

_PATTERNS: tuple[tuple[FailureClass, re.Pattern[str]], ...] = (
    (
        FailureClass.UNSUPPORTED_MODEL,
        re.compile(
            _REFUSED_CHECKPOINT.pattern
            + r"|Model architectures .* (are not supported for now|failed to be inspected)"
            r"|has no vLLM implementation|Transformers does not recognize this architecture"
            r"|unknown model architecture",
            re.I,
        ),
    ),
    (
        FailureClass.PORT_IN_USE,
        re.compile(r"address already in use|\bport in use\b|EADDRINUSE|only one usage of each socket", re.I),
    ),
    (
        FailureClass.OUT_OF_MEMORY,
        re.compile(
            r"out of memory|OutOfMemoryError|cannot allocate memory|can't allocate memory|std::bad_alloc"
            r"|\bMemoryError\b|no available memory for the cache blocks"
            r"|larger than the available KV cache memory",
            re.I,
        ),
    ),
    (
        FailureClass.MODEL_NOT_FOUND,
        re.compile(
            r"model[_ ]not[_ ]found|RepositoryNotFound|LocalEntryNotFound|is not a valid model identifier"
            r"|not appear to have a file named config\.json|no such file or directory: .*config\.json"
            r"|no config\.json|OfflineModeIsEnabled|HFValidationError"
            r"|invalid repository ID or local directory|model path does not exist",
            re.I,
        ),
    ),
    (
        FailureClass.BAD_ARGUMENTS,
        re.compile(
            r"error: unrecognized arguments|error: argument |error: the following arguments are required"
            r"|validation errors? for \w+(Config|Args|Settings)\b",
            re.I,
        ),
    ),
)

_EXPLANATIONS = {
    FailureClass.UNSUPPORTED_MODEL: _REFUSED_CHECKPOINT,
    FailureClass.OUT_OF_MEMORY: _REFUSED_FOR_MEMORY,
}

# What programs print on exit whatever the cause; it would push the cause out of the tail.
_EXIT_NOISE = re.compile(
    r"^nanobind: | - (leaked (instance|type|function) |\.\.\. skipped remainder)"
    r"|^See https://nanobind|^\s*For further information visit https://errors\.pydantic"
    r"|^INFO: +(Shutting down|Waiting for application shutdown\.|Application shutdown complete\."
    r"|Finished server process )"
)

# Access and throughput lines of uvicorn, vLLM and the embedded engine: clients that retry would push the
# cause out of the tail.
_ACCESS_LINE = re.compile(
    r'- "[A-Z]+ \S+ HTTP/[\d.]+" \d{3}| INFO engine\.(requests|stats): |Avg prompt throughput: '
)


def relevant_lines(lines: Iterable[str]) -> list[str]:
    """The last LOG_TAIL_LINES lines of a log that may explain why its engine exited."""
    relevant = [line for line in lines if not (_EXIT_NOISE.search(line) or _ACCESS_LINE.search(line))]
    return relevant[-LOG_TAIL_LINES:]


def describe_exit(returncode: int) -> tuple[int | None, str | None]:
    """(exit code, signal name), one of them None. Negative return codes are signals, as in asyncio."""
    if returncode >= 0:
        return returncode, None
    try:
        return None, signal.Signals(-returncode).name
    except ValueError:
        return None, f"signal {-returncode}"


def classify_exit(returncode: int, log_tail: Sequence[str], *, was_ready: bool) -> InstanceFailure:
    """The failure of an engine that exited by itself.

    Once an engine was ready, log lines about wrong names or ports come from requests and don't explain its
    exit: only patterns of memory errors are matched then.
    """
    exit_code, signal_name = describe_exit(returncode)
    failure_class = FailureClass.CRASHED
    for candidate, pattern in _PATTERNS:
        if was_ready and candidate is not FailureClass.OUT_OF_MEMORY:
            continue
        if any(pattern.search(line) for line in log_tail):
            failure_class = candidate
            break
    else:
        if returncode == _EXIT_USAGE and not was_ready:
            failure_class = FailureClass.BAD_ARGUMENTS
    if not was_ready and (reason := _explanation(log_tail, _EXPLANATIONS.get(failure_class))):
        return InstanceFailure(failure_class, reason, exit_code, signal_name)
    exit_text = f"was ended by {signal_name}" if signal_name else f"exited with code {exit_code}"
    if signal_name == "SIGKILL":
        exit_text += " (by the kernel's out-of-memory killer, unless a user or program sent it)"
    when = "while it was running" if was_ready else "before it was ready"
    return InstanceFailure(
        failure_class,
        f"the engine {exit_text} {when}",
        exit_code,
        signal_name,
        tuple(log_tail[-LOG_TAIL_LINES:]),
    )


def _explanation(log_tail: Sequence[str], pattern: re.Pattern[str] | None) -> str | None:
    if pattern is None:
        return None
    return next((match["reason"] for line in reversed(log_tail) if (match := pattern.search(line))), None)


def start_error(what: str, failure: InstanceFailure, instance_id: str) -> ManagerError:
    """The error for requests that waited for a start; `what` names the instance or model that failed."""
    message, public = f"{what}: {explain(failure)}", f"{what}: {public_reason(failure, instance_id)}"
    if failure.failure_class is FailureClass.UNSUPPORTED_MODEL:
        return UnsupportedModel(message, public=public)
    return InstanceFailedToStart(message, public=public)


def public_reason(failure: InstanceFailure, instance_id: str) -> str:
    """A failure for clients that may not read logs."""
    return f"{failure.failure_class}; admins can read the reason in GET /instances/{instance_id}"


def explain(failure: InstanceFailure, *, num_lines: int = 5) -> str:
    """A failure in one message: class, description, last log lines."""
    text = f"{failure.failure_class}: {failure.message}"
    lines = [line for line in failure.log_tail if line.strip()][-num_lines:]
    return f"{text}; last log lines: {' | '.join(lines)}" if lines else text
