"""The file of API keys that `API_KEYS_FILE` names: which models each key may use, and how often.

One key per line, `name: key`, then its permissions; `#` begins a comment:

    alice: sk-4f1c…  models=small,qwen* rate=10/s
    nightly: sk-77ab…  rate=1000/h burst=50
    ops: sk-90de…  admin

A key without `models` may use every model, one without `rate` has no rate limit. `burst` is the number of
requests that may arrive at once; by default the number in `rate`. No message here shows a key.
"""

from __future__ import annotations

import logging
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.bounded_file import read_bounded

logger = logging.getLogger("berth")

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_KEY = re.compile(r"[\x21-\x7e]{1,512}")
_RATE = re.compile(r"(\d{1,9})/([smh])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class KeyFileError(Exception):
    """The file can't be used; the message names the line and the reason, and shows no key."""


@dataclass(frozen=True, slots=True)
class KeyLine:
    """One key. `models` are names or patterns (`*`, `?`); None = all. `rate_per_s` None = no limit."""

    name: str
    key: str
    is_admin: bool = False
    models: tuple[str, ...] | None = None
    rate_per_s: float | None = None
    burst: int = 0

    def __repr__(self) -> str:
        return f"<KeyLine {self.name}>"


def read_key_file(path: Path) -> tuple[KeyLine, ...]:
    """All keys of the file, possibly none. Warns if other users of this machine can read it.

    Raises KeyFileError.
    """
    try:
        text = read_bounded(path).decode("utf-8")
        mode = path.stat().st_mode
    except OSError as error:
        raise KeyFileError(error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise KeyFileError("isn't UTF-8 text") from None
    if mode & stat.S_IROTH:
        logger.warning("%s can be read by every user of this machine; run chmod 600 on it", path)
    return _without_duplicates(list(_lines(text)))


def _lines(text: str) -> Iterator[tuple[int, KeyLine]]:
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if line and not line.startswith("#"):
            try:
                yield number, _parse(line)
            except KeyFileError as error:
                raise KeyFileError(f"line {number}: {error}") from None


def _parse(line: str) -> KeyLine:
    """Raises KeyFileError without the line number."""
    name, colon, rest = line.partition(":")
    words = rest.split()
    if not colon or not _NAME.fullmatch(name.strip()):
        raise KeyFileError(
            "must begin with a name and a colon, as in 'alice: KEY'; a name has letters, digits and ._@-"
        )
    if not words or not _KEY.fullmatch(words[0]):
        raise KeyFileError("the key after the name must be 1 to 512 printable ASCII characters")
    options: dict[str, str] = {}
    for position, word in enumerate(words[1:], start=2):
        if word.startswith("#"):
            break
        option, equals, value = word.partition("=")
        if option not in ("admin", "models", "rate", "burst") or (option == "admin") == bool(equals):
            # Not shown: it may be part of a key.
            raise KeyFileError(f"word {position} after the colon must be admin, models=, rate= or burst=")
        if option in options:
            raise KeyFileError(f"{option} is given twice")
        options[option] = value
    if "admin" in options and len(options) > 1:
        raise KeyFileError("an admin key has no limits: leave out models, rate and burst")
    rate_per_s, burst = _read_rate(options)
    return KeyLine(
        name=name.strip(),
        key=words[0],
        is_admin="admin" in options,
        models=_read_models(options.get("models")),
        rate_per_s=rate_per_s,
        burst=burst,
    )


def _read_models(value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    models = tuple(filter(None, value.split(",")))
    if not models:
        raise KeyFileError("models= is empty; leave it out to allow all")
    return models


def _read_rate(options: dict[str, str]) -> tuple[float | None, int]:
    """Requests per second, and the burst."""
    if "rate" not in options:
        if "burst" in options:
            raise KeyFileError("burst needs a rate")
        return None, 0
    found = _RATE.fullmatch(options["rate"])
    if not found or int(found[1]) == 0:
        raise KeyFileError(f"rate={options['rate']} must be a number per s, m or h, as in rate=10/s")
    number = int(found[1])
    burst = options.get("burst", str(number))
    if not re.fullmatch(r"[0-9]{1,9}", burst) or int(burst) == 0:
        raise KeyFileError(f"burst={burst} must be a whole number, 1 or more")
    return number / _SECONDS[found[2]], int(burst)


def _without_duplicates(lines: list[tuple[int, KeyLine]]) -> tuple[KeyLine, ...]:
    """Raises KeyFileError for a duplicate key or name, as requests must be attributed unambiguously."""
    names: dict[str, int] = {}
    keys: dict[str, int] = {}
    for number, line in lines:
        for seen, value, what in ((names, line.name, "the name"), (keys, line.key, "the key")):
            if value in seen:
                raise KeyFileError(f"line {number}: {what} is already in line {seen[value]}")
            seen[value] = number
    return tuple(line for _, line in lines)
