"""One call written as a JSON object, `{"name": …, "arguments": {…}}`, read piece by piece."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

from engine.text.parsers.events import CallArguments, CallBegun, CallEnded, TextPiece, ToolEvent
from engine.text.parsers.json_scan import ObjectScanner

_STRING = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"'
_TO_NAME = r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*(?P<name>' + _STRING + ")"
_NAME = re.compile(_TO_NAME)
_HEAD = re.compile(_TO_NAME + r'\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_MAX_HEAD = 4096  # characters; without a head in these, the whole object is awaited, to bound the search
_FIRST_KEYS = ('"name"', '"type"', '"id"', '"arguments"', '"parameters"')


class JsonCall:
    """Reports arguments as they arrive, exactly as the model wrote them, once the name is known.

    If the name comes last, or the arguments are not an object, the whole object is awaited. An object that
    turns out not to be a call is reported as text.
    """

    def __init__(self, index: int, prefix: str = "", accepts: Callable[[str], bool] | None = None) -> None:
        """`prefix`: the text before the object, reported only if it is not a call.

        `accepts`: whether a name may be called; None = any.
        """
        self._index = index
        self._prefix = prefix
        self._accepts = accepts
        self._text = ""  # the object so far, until it is known whether it is a call
        self._whole = ObjectScanner()
        self._arguments: ObjectScanner | None = None
        self._is_rejected = False
        self.is_call = False
        self.is_over = False

    def feed(self, text: str) -> tuple[list[ToolEvent], str]:
        """Events, and the rest of `text` once the object has ended (`is_over`)."""
        count = self._whole.feed(text)
        own, rest = text[:count], text[count:]
        events: list[ToolEvent] = []
        if self.is_call:
            events += self._pass_on(own)
        elif self._is_rejected:
            events += [TextPiece(own)] if own else []
        else:
            self._text += own
            if unread := self._after_brace():
                # Not JSON, so there is no end to search for.
                self.is_over, self._text = True, self._text[: -len(unread)]
                return self._reject(), unread + rest
            events += self._classify()
        if self._whole.is_over and not self.is_over:
            self.is_over = True
            events += self._end()
        return events, rest

    def finish(self) -> list[ToolEvent]:
        """The output has ended, perhaps inside the object."""
        if self.is_call:
            return [CallEnded(self._index)]
        return [] if self._is_rejected else self._reject()

    def _classify(self) -> list[ToolEvent]:
        """Decide whether the text so far is a call, can't be one, or may become one."""
        if head := _HEAD.match(self._text, 0, _MAX_HEAD):
            name = _read_name(head["name"])
            if name is None or not self._may_call(name):
                return self._reject()
            self.is_call, self._arguments = True, ObjectScanner()
            return [CallBegun(self._index, name), *self._pass_on(self._text[head.end() :])]
        if not self._may_become_call():
            return self._reject()
        return []

    def _may_become_call(self) -> bool:
        body = self._text[:_MAX_HEAD].lstrip()[1:].lstrip()
        if not any(body.startswith(key) or key.startswith(body) for key in _FIRST_KEYS):
            return False
        if self._accepts is None or (found := _NAME.match(self._text, 0, _MAX_HEAD)) is None:
            return True
        name = _read_name(found["name"])
        return name is not None and self._may_call(name)

    def _after_brace(self) -> str:
        """The text after the opening brace, if no JSON object can continue like that."""
        body = self._text.lstrip()[1:].lstrip()
        return body if body and body[0] not in '"}' else ""

    def _may_call(self, name: str) -> bool:
        return self._accepts is None or self._accepts(name)

    def _reject(self) -> list[ToolEvent]:
        self._is_rejected = True
        text, self._text = self._prefix + self._text, ""
        return [TextPiece(text)] if text else []

    def _pass_on(self, text: str) -> list[ToolEvent]:
        if self._arguments is None or self._arguments.is_over:
            return []
        fragment = text[: self._arguments.feed(text)]
        return [CallArguments(self._index, fragment)] if fragment else []

    def _end(self) -> list[ToolEvent]:
        if self.is_call:
            return [CallEnded(self._index)]
        if self._is_rejected:
            return []
        call = read_call(self._text) if self._whole.is_complete else None
        if call is None or not self._may_call(call[0]):
            return self._reject()
        self.is_call = True
        name, arguments = call
        return [CallBegun(self._index, name), CallArguments(self._index, arguments), CallEnded(self._index)]


def read_call(text: str) -> tuple[str, str] | None:
    """Name and arguments (as JSON) of a whole object; None if it is not a call."""
    value = read_json(text)
    if not isinstance(value, dict) or not _is_name(value.get("name")):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):  # JSON within JSON, as in OpenAI's own format
        arguments = read_json(arguments) if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return None
    return value["name"], write_json(arguments)


def read_json(text: str) -> Any:
    """The value; None if it is not JSON, or contains numbers that JSON can't represent."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_read_finite)
    except (ValueError, RecursionError):
        return None


def write_json(value: Any) -> str:
    """As JSON that can be encoded, even with lone surrogates."""
    text = json.dumps(value, ensure_ascii=False)
    return text if _is_encodable(text) else json.dumps(value)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not valid JSON.")


def _read_finite(digits: str) -> float:
    number = float(digits)
    return number if abs(number) != float("inf") else _refuse(digits)


def _read_name(quoted: str) -> str | None:
    name = json.loads(quoted)
    return name if _is_name(name) else None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and _is_encodable(value)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
