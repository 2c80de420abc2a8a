"""What an engine's log says of its start: the phase, and how much of it is done. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

DOWNLOAD, WEIGHTS, WARM_UP = "download", "weights", "warm-up"

_LINE_BREAK = re.compile(r"[\r\n]+")  # progress bars return to the start of their line


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """`fraction` of the phase that is done: 0 to 1, None = unknown."""

    phase: str
    fraction: float | None = None

    def __str__(self) -> str:
        return self.phase if self.fraction is None else f"{self.phase}, {round(self.fraction * 100)} %"


@dataclass(frozen=True, slots=True)
class LoadSign:
    """A line that shows a phase. The pattern's group `percent`, if it has one, is how much of it is done."""

    phase: str
    pattern: str

    def read(self, line: str) -> LoadProgress | None:
        found = re.search(self.pattern, line, re.I)
        if found is None:
            return None
        percent = found.groupdict().get("percent")
        return LoadProgress(self.phase, None if percent is None else min(float(percent), 100.0) / 100)


_PERCENT = r"[^%\n]*?(?P<percent>\d{1,3})\s?%"

# Of vLLM, SGLang, llama.cpp, TGI and what is built on the hub's library.
ANY_ENGINE: tuple[LoadSign, ...] = (
    LoadSign(DOWNLOAD, r"\b(?:fetching|downloading)\b" + _PERCENT),
    LoadSign(DOWNLOAD, r"\bdownloading\b"),
    LoadSign(WEIGHTS, r"\bloading\b.*\b(?:shards|weights|checkpoint)\b" + _PERCENT),
    LoadSign(WARM_UP, r"\bcapturing\b.*\bgraphs?\b" + _PERCENT),
    LoadSign(WARM_UP, r"warming up|\bwarm-?up\b|capturing .*graph|torch\.compile|graph capturing"),
    LoadSign(
        WEIGHTS,
        r"\bload_tensors\b|\bloading (?:the )?model\b|\bstarting to load model\b|\bloading weights\b"
        r"|llama_model_load|INFO engine: Listening on ",
    ),
)


def read_progress(lines: Sequence[str], signs: Sequence[LoadSign]) -> LoadProgress | None:
    """What the newest line with a sign says; None if none has one."""
    for text in reversed(lines):
        for line in reversed(_LINE_BREAK.split(text)):
            for sign in signs:
                if (progress := sign.read(line)) is not None:
                    return progress
    return None
