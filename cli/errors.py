"""Exit codes, and the exception that carries them. Knows nothing of terminals or HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """The exit statuses of `berth`; `berth --help` lists them."""

    OK = 0
    REFUSED = 1  # by the server
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    NOT_ALLOWED = 5  # the key is missing, unknown, or lacks permission
    INTERRUPTED = 130  # as in shells, for SIGINT


class CliError(Exception):
    """Ends the command. `message`: the problem and the next step; `envelope`: the same as JSON."""

    def __init__(
        self,
        message: str,
        exit_code: ExitCode,
        *,
        next_step: str | None = None,
        error: dict[str, Any] | None = None,
        details: Sequence[str] = (),
    ) -> None:
        """`details`: lines shown below the message, such as the end of a log."""
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.next_step = next_step
        self.details = details
        self._error = error

    @property
    def code(self) -> str | None:
        """The code of the server's error."""
        code = (self._error or {}).get("code")
        return None if code is None else str(code)

    @property
    def line(self) -> str:
        """Message and next step in one line."""
        text = " ".join(self.message.split())
        return f"{text.rstrip('.')}; {self.next_step}" if self.next_step else text

    @property
    def envelope(self) -> dict[str, Any]:
        """OpenAI's error envelope: the server's, or one in the same form."""
        ours = {
            "message": self.line,
            "type": f"{self.exit_code.name.lower()}_error",
            "param": None,
            "code": None,
        }
        return {"error": self._error or ours}


def wrong_use(message: str, next_step: str | None = None) -> CliError:
    """An error for an invalid command line."""
    return CliError(message, ExitCode.USAGE, next_step=next_step)
