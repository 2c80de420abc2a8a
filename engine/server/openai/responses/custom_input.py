"""A custom tool's text, taken out of a function call's JSON as it comes. Pure.

The model writes `{"input": "…"}`; what it writes otherwise (the bare string, another name, no JSON) counts as
the text, too: the call is the client's to judge.
"""

from __future__ import annotations

import json
import re

_BEGIN = re.compile(r'\s*(?:\{\s*"input"\s*:\s*)?"')
_PLAIN = re.compile(r'[^"\\]+')
_HIGH_SURROGATE = re.compile(r"\\u[dD][89abAB]")


class CustomInput:
    def __init__(self) -> None:
        self.text = ""
        self._raw = ""  # what isn't told yet
        self._is_begun = False
        self._is_over = False

    def feed(self, fragment: str) -> str:
        """What the fragment brings of the text."""
        self._raw += fragment
        if not self._is_begun:
            begin = _BEGIN.match(self._raw)
            if begin is None:
                return ""
            self._is_begun = True
            self._raw = self._raw[begin.end() :]
        return self._tell(self._decode())

    def finish(self) -> str:
        """The rest, where it wasn't written as expected."""
        if self._is_begun or not self._raw.strip():
            return ""
        return self._tell(_only_text(self._raw))

    def _tell(self, text: str) -> str:
        self.text += text
        return text

    def _decode(self) -> str:
        """The string's characters as far as they are complete; what comes after it is of no interest."""
        told: list[str] = []
        while self._raw and not self._is_over:
            plain = _PLAIN.match(self._raw)
            if plain is not None:
                told.append(plain[0])
                self._raw = self._raw[plain.end() :]
            elif self._raw[0] == '"':
                self._is_over = True
            else:
                length = _escape_length(self._raw)
                if len(self._raw) < length:
                    break
                told.append(_unescape(self._raw[:length]))
                self._raw = self._raw[length:]
        return "".join(told)


def _escape_length(raw: str) -> int:
    """How long the escape is that `raw` begins with; more than there is where that can't be told yet."""
    if not raw.startswith("\\u"):
        return 2
    if not _HIGH_SURROGATE.match(raw):
        return 6
    return 12 if raw[6:8] == "\\u" or len(raw) < 8 else 6


def _unescape(escape: str) -> str:
    try:
        text: str = json.loads(f'"{escape}"')
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    except ValueError:
        return escape


def _only_text(raw: str) -> str:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    texts = [one for one in value.values() if isinstance(one, str)] if isinstance(value, dict) else []
    if value == {}:
        return ""
    return texts[0] if len(texts) == 1 else raw
