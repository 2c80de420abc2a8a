"""Reads the flags of a llama-server from what its `--help` prints. Pure, but for running the program."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

_COLUMN = 40  # where descriptions begin
_ARGUMENT = re.compile(r"(--?[A-Za-z][\w.-]*)(,\s+|\s+|$)")
_QUOTED = re.compile(r"'([a-z]+)'")
_ALLOWED = re.compile(r"allowed values: (\w+(?:, \w+)+)")
_TIMEOUT_S = 20.0
_MAX_PROGRAMS = 16  # whose flags are kept

SWITCH, CHOICE, NUMBER, PAIR, TEXT = "switch", "choice", "number", "pair", "text"


@dataclass(frozen=True, slots=True)
class Flag:
    """`names`: all its spellings, dashes included; `negative`: those that turn it off."""

    names: tuple[str, ...]
    kind: str
    negative: tuple[str, ...] = ()
    words: tuple[str, ...] = ()  # the choices; of a number, what may stand for it

    def to_json(self) -> dict[str, Any]:
        """`from_json` restores it."""
        entry: dict[str, Any] = {"names": list(self.names), "kind": self.kind}
        more = {"negative": list(self.negative), "words": list(self.words)}
        return entry | {key: value for key, value in more.items() if value}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Flag:
        names, negative, words = (tuple(entry.get(key, ())) for key in ("names", "negative", "words"))
        return cls(names, entry["kind"], negative, words)


def parse_help(text: str) -> list[Flag]:
    """The flags that a help page describes, in its order."""
    return [flag for usage, about in _entries(text) if (flag := _flag(usage, about)) is not None]


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Each flag's usage and its description."""
    usage, about = "", ""
    for line in text.splitlines():
        if line.startswith("-") and not line.startswith("-----"):
            if usage:
                yield usage, about
            is_short = len(line) > _COLUMN and not line[_COLUMN - 3 : _COLUMN].strip()
            usage, about = (line[:_COLUMN], line[_COLUMN:]) if is_short else (line, "")
        elif usage and line.startswith(" "):
            about += f" {line.strip()}"
    if usage:
        yield usage, about


def _flag(usage: str, about: str) -> Flag | None:
    given: list[str] = []
    rest = usage.strip()
    while (match := _ARGUMENT.match(rest)) is not None:
        given.append(match[1])
        rest = rest[match.end() :]
        if not match[2].startswith(","):
            break
    if not given:
        return None
    # `-kvo, --kv-offload, -nkvo, --no-kv-offload`: what follows the last positive name in full turns it off.
    full = [at for at, name in enumerate(given) if name.startswith("--") and not name.startswith("--no-")]
    last = full[-1] if full else len(given) - 1
    kind, words = _kind(rest.strip(), about)
    return Flag(tuple(given[: last + 1]), kind, tuple(given[last + 1 :]), words)


def _kind(hint: str, about: str) -> tuple[str, tuple[str, ...]]:
    if not hint:
        return SWITCH, ()
    if match := re.fullmatch(r"[\[{<]([\w-]+(?:[|,][\w-]+)+)[\]}>]", hint):
        return CHOICE, tuple(re.split(r"[|,]", match[1]))
    if allowed := _ALLOWED.search(about):
        return CHOICE, tuple(allowed[1].split(", "))
    if hint in ("N", "SECONDS", "PORT"):
        return NUMBER, tuple(dict.fromkeys(_QUOTED.findall(about)))
    return (PAIR if re.fullmatch(r"[A-Z]+ [A-Z]+", hint) else TEXT), ()


class KnownFlags:
    """The flags of programs, each read once until its file changes."""

    def __init__(self) -> None:
        self._flags: dict[tuple[Path, int, int], list[Flag]] = {}
        self._reading = Lock()

    def of(self, binary: Path) -> list[Flag] | None:
        """What was read before; None if nothing was. Blocks for no longer than a stat."""
        return self._flags.get(_version(binary))

    def read(self, binary: Path) -> list[Flag]:
        """Run the program for its help, unless that was done. Empty if it can't tell. Blocks for seconds."""
        version = _version(binary)
        with self._reading:
            if version not in self._flags:
                while len(self._flags) >= _MAX_PROGRAMS:
                    self._flags.pop(next(iter(self._flags)))
                self._flags[version] = parse_help(_help_of(binary))
            return self._flags[version]


def _version(binary: Path) -> tuple[Path, int, int]:
    try:
        found = binary.stat()
    except OSError:
        return binary, 0, 0
    return binary, found.st_mtime_ns, found.st_size


def _help_of(binary: Path) -> str:
    try:
        done = subprocess.run(
            [str(binary), "--help"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")
