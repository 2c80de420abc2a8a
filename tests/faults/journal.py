"""The outcome of every request, and what counts as a clear answer for a client."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How a request ended for its client."""

    ANSWERED = "answered"  # complete, status below 400
    REFUSED = "refused"  # an error in the usual envelope, or the engine's own error
    CUT = "cut"  # it began, and the client can tell that it is incomplete
    LEFT = "left"  # the client left on purpose
    LOST = "lost"  # none of these: no answer, no reason, or a wrong one


class Journal:
    """Thread-safe counts of outcomes."""

    def __init__(self) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.losses: list[str] = []
        self.notes: list[str] = []
        self._lock = threading.Lock()

    @property
    def num_sent(self) -> int:
        with self._lock:
            return sum(self.outcomes.values())

    def count(self, outcome: Outcome, description: str = "", number: int = 1) -> None:
        """`description` is kept for lost requests."""
        with self._lock:
            self.outcomes[outcome] += number
            if outcome is Outcome.LOST:
                self.losses.append(description)

    def note(self, text: str) -> None:
        """Add a measurement to the table."""
        self.notes.append(text)

    def pop_losses(self) -> list[str]:
        """Return the losses since the last call."""
        with self._lock:
            losses, self.losses = self.losses, []
        return losses


@dataclass(slots=True)
class Reply:
    """What a client received. `status` 0 = no head; `broken` = why the response is incomplete."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    broken: str = ""
    seconds: float = 0.0
    first_byte_s: float = 0.0

    @property
    def never_sent(self) -> bool:
        """Whether the connection was refused."""
        return self.status == 0 and self.broken.startswith("ConnectError")

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object in the body or in a stream's last event; empty if there is none."""
        text = self.body
        if self.is_event_stream:
            text = text.rstrip().rpartition(b"data: ")[2]
        try:
            found = json.loads(text)["error"]
        except (ValueError, KeyError, TypeError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def code(self) -> str:
        return str(self.error.get("code"))

    @property
    def message(self) -> str:
        return str(self.error.get("message"))

    @property
    def is_event_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def is_done(self) -> bool:
        """Whether an event stream has ended properly."""
        return self.body.endswith(b"data: [DONE]\n\n") and not self.broken

    @property
    def outcome(self) -> Outcome:
        if self.status == 0:
            return Outcome.LOST
        if self.status >= 400:
            has_reason = bool(self.error.get("message")) and bool(self.error.get("type"))
            return Outcome.REFUSED if has_reason and not self.broken else Outcome.LOST
        if self.broken:
            # An event stream gives the reason, unless the engine's bytes were compressed.
            return Outcome.CUT
        if self.is_event_stream and self.error:
            return Outcome.LOST  # an error, then the end of a successful stream
        return Outcome.ANSWERED

    def __str__(self) -> str:
        shown = self.body if len(self.body) < 600 else self.body[:300] + b" ... " + self.body[-300:]
        return f"status {self.status}, {len(self.body)} bytes {shown!r}, {self.broken or 'complete'}"
