"""Classifies why an engine failed, from its exit and its last log lines. Pure."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence

from instance_manager.backends.log_patterns import LogPatterns
from instance_manager.errors import InstanceFailedToStart, ManagerError, UnsupportedModel
from instance_manager.types import FailureClass, InstanceFailure

LOG_TAIL_LINES = 20

_EXIT_USAGE = 2  # what argparse and most command-line programs exit with on wrong arguments

# A line may be a sign of several classes: the first of these counts, then any other.
_FIRST = (
    FailureClass.UNSUPPORTED_MODEL,
    FailureClass.PORT_IN_USE,
    FailureClass.OUT_OF_MEMORY,
    FailureClass.MODEL_NOT_FOUND,
    FailureClass.BAD_ARGUMENTS,
)
# A start fails until the model's entry or its files are changed: as is said of those known before a start.
_WRONG_ENTRY = (FailureClass.UNSUPPORTED_MODEL, FailureClass.MODEL_NOT_FOUND, FailureClass.BAD_ARGUMENTS)
_CLASSES = (*_FIRST, *(one for one in FailureClass if one not in _FIRST))


def relevant_lines(lines: Iterable[str], patterns: LogPatterns) -> list[str]:
    """The last LOG_TAIL_LINES lines of a log that may explain why its engine exited."""
    return [line for line in lines if not patterns.is_noise(line)][-LOG_TAIL_LINES:]


def describe_exit(returncode: int) -> tuple[int | None, str | None]:
    """(exit code, signal name), one of them None. Negative return codes are signals, as in asyncio."""
    if returncode >= 0:
        return returncode, None
    try:
        return None, signal.Signals(-returncode).name
    except ValueError:
        return None, f"signal {-returncode}"


def classify_exit(
    returncode: int, log_tail: Sequence[str], patterns: LogPatterns, *, was_ready: bool
) -> InstanceFailure:
    """The failure of an engine that exited by itself. `patterns`: of its kind.

    Once an engine was ready, log lines about wrong names or ports come from requests and don't explain its
    exit: only patterns of memory errors are matched then.
    """
    exit_code, signal_name = describe_exit(returncode)
    failure_class = FailureClass.CRASHED
    for candidate in _CLASSES:
        if was_ready and candidate is not FailureClass.OUT_OF_MEMORY:
            continue
        if any(patterns.shows(candidate, line) for line in log_tail):
            failure_class = candidate
            break
    else:
        if returncode == _EXIT_USAGE and not was_ready:
            failure_class = FailureClass.BAD_ARGUMENTS
    reasons = (patterns.reason(failure_class, line) for line in reversed(log_tail))
    if not was_ready and (reason := next(filter(None, reasons), None)):
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


def start_error(what: str, failure: InstanceFailure, instance_id: str) -> ManagerError:
    """The error for requests that waited for a start; `what` names the instance or model that failed."""
    verb = "can't be run" if failure.failure_class in _WRONG_ENTRY else "failed"
    message = f"{what} {verb}: {explain(failure)}"
    public = f"{what} {verb} {public_reason(failure, instance_id)}"
    if failure.failure_class is FailureClass.UNSUPPORTED_MODEL:
        return UnsupportedModel(message, public=public)
    return InstanceFailedToStart(message, public=public)


def public_reason(failure: InstanceFailure, instance_id: str) -> str:
    """A failure for clients that may not read logs, behind a verb."""
    return f"({failure.failure_class}); an admin can read the reason in GET /instances/{instance_id}"


def explain(failure: InstanceFailure, *, num_lines: int = 5) -> str:
    """A failure in one message: description, last log lines. Its class only if these lines showed it."""
    text = failure.message
    if failure.log_tail and failure.failure_class in _FIRST:
        text += f" ({failure.failure_class.replace('_', ' ')})"
    lines = [line for line in failure.log_tail if line.strip()][-num_lines:]
    return f"{text}; last log lines: {' | '.join(lines)}" if lines else text
