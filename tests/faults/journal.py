"""What became of every request that was sent, and what a client calls a clear answer."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Fate(StrEnum):
    """How a request ended for its client."""

    ANSWERED = "answered"  # whole, below 400
    REFUSED = "refused"  # an error in the usual envelope, or the engine's own
    CUT = "cut"  # it had begun, and its end can't be taken for a clean one
    LEFT = "left"  # the client itself has gone, on purpose
    LOST = "lost"  # none of these: no answer, no reason, or a lie


class Ledger:
    """Counts from all threads."""

    def __init__(self) -> None:
        self.fates: Counter[Fate] = Counter()
        self.losses: list[str] = []
        self.notes: list[str] = []
        self._lock = threading.Lock()

    @property
    def num_sent(self) -> int:
        with self._lock:
            return sum(self.fates.values())

    def count(self, fate: Fate, what: str = "", number: int = 1) -> None:
        """`what` is told of those that are lost."""
        with self._lock:
            self.fates[fate] += number
            if fate is Fate.LOST:
                self.losses.append(what)

    def note(self, text: str) -> None:
        """Something that was measured, for the table."""
        self.notes.append(text)

    def take_losses(self) -> list[str]:
        """What was lost since the last time."""
        with self._lock:
            taken, self.losses = self.losses, []
        return taken


@dataclass(slots=True)
class Reply:
    """What a client got. `status` 0 = no head came; `broken` = the connection did not end as announced."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    broken: str = ""
    seconds: float = 0.0
    first_byte_s: float = 0.0

    @property
    def never_sent(self) -> bool:
        """Whether nobody listened."""
        return self.status == 0 and self.broken.startswith("ConnectError")

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object, of an answer or of a stream's last event; empty where there is none."""
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
        """Whether a stream of events has ended as such streams end."""
        return self.body.endswith(b"data: [DONE]\n\n") and not self.broken

    @property
    def fate(self) -> Fate:
        if self.status == 0:
            return Fate.LOST
        if self.status >= 400:
            has_reason = bool(self.error.get("message")) and bool(self.error.get("type"))
            return Fate.REFUSED if has_reason and not self.broken else Fate.LOST
        if self.broken:
            # A stream of events says why, unless its engine's bytes were no plain text.
            return Fate.CUT
        if self.is_event_stream and self.error:
            return Fate.LOST  # an error, and then the end of a stream that went well
        return Fate.ANSWERED

    def __str__(self) -> str:
        shown = self.body if len(self.body) < 600 else self.body[:300] + b" ... " + self.body[-300:]
        return f"status {self.status}, {len(self.body)} bytes {shown!r}, {self.broken or 'whole'}"
