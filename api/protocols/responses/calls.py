"""Writes the model's calls as items, each in the form of its tool. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

from api.protocols.responses.toolbox import INPUT, LOCAL_SHELL, TOOL_SEARCH, ToolFunction

_BEGIN = re.compile(r'\s*(?:\{\s*"' + INPUT + r'"\s*:\s*)?"')
_PLAIN = re.compile(r'[^"\\]+')
_HIGH_SURROGATE = re.compile(r"\\u[dD][89abAB]")


class CallWriter:
    """A function's call; the other kinds differ in some of this."""

    type = "function_call"
    event: str | None = "response.function_call_arguments"  # of its events' names; None = it has none

    def __init__(self, name_fields: dict[str, Any]) -> None:
        self._name_fields = name_fields
        self._pieces: list[str] = []

    @property
    def fields(self) -> dict[str, Any]:
        """The item's fields so far."""
        return {**self._name_fields, "arguments": self._raw}

    @property
    def done(self) -> dict[str, Any]:
        """The fields of its last event."""
        return {"arguments": self._raw, "name": self._name_fields["name"]}

    def feed(self, arguments: str) -> str:
        """More of the model's JSON; what to send of it."""
        self._pieces.append(arguments)
        return arguments

    def finish(self) -> str:
        """The last that is to be sent."""
        return ""

    @property
    def _raw(self) -> str:
        return "".join(self._pieces)

    @property
    def _parsed(self) -> Any:
        try:
            return json.loads(self._raw or "{}")
        except (ValueError, RecursionError):
            return {}


class _CustomCall(CallWriter):
    type = "custom_tool_call"
    event = "response.custom_tool_call_input"

    def __init__(self, name_fields: dict[str, Any]) -> None:
        super().__init__(name_fields)
        self._input = CustomInput()

    @property
    def fields(self) -> dict[str, Any]:
        return {**self._name_fields, "input": self._input.text}

    @property
    def done(self) -> dict[str, Any]:
        return {"input": self._input.text}

    def feed(self, arguments: str) -> str:
        return self._input.feed(arguments)

    def finish(self) -> str:
        return self._input.finish()


class _ToolSearchCall(CallWriter):
    """The client runs the search; it gets the arguments as an object, once they are complete."""

    type = "tool_search_call"
    event = None

    @property
    def fields(self) -> dict[str, Any]:
        return {"execution": "client", "arguments": self._parsed}


class _ShellCall(CallWriter):
    """The client runs the command."""

    type = "local_shell_call"
    event = None

    @property
    def fields(self) -> dict[str, Any]:
        given = self._parsed if isinstance(self._parsed, dict) else {}
        command = given.get("command") or []
        if isinstance(command, str):
            command = ["bash", "-lc", command]
        action: dict[str, Any] = {"type": "exec", "command": [str(part) for part in command], "env": {}}
        for name in ("timeout_ms", "working_directory"):
            action[name] = given.get(name)
        return {"action": action}


def call_writer(function: ToolFunction | None, name: str) -> CallWriter:
    """`function`: None if the model calls one that it wasn't offered; the client handles that."""
    if function is None:
        return CallWriter({"name": name})
    fields = {"name": function.name, **({"namespace": function.namespace} if function.namespace else {})}
    kinds = {"custom": _CustomCall, TOOL_SEARCH: _ToolSearchCall, LOCAL_SHELL: _ShellCall}
    return kinds.get(function.type, CallWriter)(fields)


class CustomInput:
    """Extracts a custom tool's text from a function call's JSON, `{"input": "…"}`, as it arrives.

    Anything else (a bare string, another name, no JSON) is also taken as the text: the client decides.
    """

    def __init__(self) -> None:
        self._decoded: list[str] = []
        self._raw = ""  # not decoded yet
        self._is_begun = False
        self._is_over = False

    @property
    def text(self) -> str:
        return "".join(self._decoded)

    def feed(self, fragment: str) -> str:
        """The text that the fragment adds."""
        self._raw += fragment
        if not self._is_begun:
            begin = _BEGIN.match(self._raw)
            if begin is None:
                return ""
            self._is_begun = True
            self._raw = self._raw[begin.end() :]
        return self._add(self._decode())

    def finish(self) -> str:
        """The rest, if the JSON had an unexpected form."""
        if self._is_begun or not self._raw.strip():
            return ""
        return self._add(_text_in(self._raw))

    def _add(self, text: str) -> str:
        self._decoded.append(text)
        return text

    def _decode(self) -> str:
        """The complete characters of the string; anything after the string is dropped."""
        decoded: list[str] = []
        while self._raw and not self._is_over:
            if (plain := _PLAIN.match(self._raw)) is not None:
                decoded.append(plain[0])
                self._raw = self._raw[plain.end() :]
            elif self._raw[0] == '"':
                self._is_over = True
            else:
                length = _escape_length(self._raw)
                if len(self._raw) < length:
                    break
                decoded.append(_unescaped(self._raw[:length]))
                self._raw = self._raw[length:]
        return "".join(decoded)


def _escape_length(raw: str) -> int:
    """Of the escape at the start of `raw`; more than there is, if that is not known yet."""
    if not raw.startswith("\\u"):
        return 2
    if not _HIGH_SURROGATE.match(raw):
        return 6
    return 12 if raw[6:8] == "\\u" or len(raw) < 8 else 6


def _unescaped(escape: str) -> str:
    try:
        text: str = json.loads(f'"{escape}"')
    except ValueError:
        return escape
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text_in(raw: str) -> str:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    texts = [text for text in value.values() if isinstance(text, str)] if isinstance(value, dict) else []
    if value == {}:
        return ""
    return texts[0] if len(texts) == 1 else raw
