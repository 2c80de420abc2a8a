"""Extracts a custom tool's text from a function call's JSON, incrementally. Pure.

The model should write `{"input": "…"}`. Anything else (a bare string, another name, no JSON) is also taken as
the text, and the client decides what to do with it.
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
        self._raw = ""  # not yet decoded
        self._is_begun = False
        self._is_over = False

    def feed(self, fragment: str) -> str:
        """The text that the fragment adds."""
        self._raw += fragment
        if not self._is_begun:
            begin = _BEGIN.match(self._raw)
            if begin is None:
                return ""
            self._is_begun = True
            self._raw = self._raw[begin.end() :]
        return self._append(self._decode())

    def finish(self) -> str:
        """The remaining text, if the JSON had an unexpected form."""
        if self._is_begun or not self._raw.strip():
            return ""
        return self._append(_text_of_any_json(self._raw))

    def _append(self, text: str) -> str:
        self.text += text
        return text

    def _decode(self) -> str:
        """The complete characters of the string; anything after the string is ignored."""
        decoded: list[str] = []
        while self._raw and not self._is_over:
            plain = _PLAIN.match(self._raw)
            if plain is not None:
                decoded.append(plain[0])
                self._raw = self._raw[plain.end() :]
            elif self._raw[0] == '"':
                self._is_over = True
            else:
                length = _escape_length(self._raw)
                if len(self._raw) < length:
                    break
                decoded.append(_unescape(self._raw[:length]))
                self._raw = self._raw[length:]
        return "".join(decoded)


def _escape_length(raw: str) -> int:
    """The length of the escape at the start of `raw`; more than its length if still unknown."""
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


def _text_of_any_json(raw: str) -> str:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    texts = [text for text in value.values() if isinstance(text, str)] if isinstance(value, dict) else []
    if value == {}:
        return ""
    return texts[0] if len(texts) == 1 else raw
