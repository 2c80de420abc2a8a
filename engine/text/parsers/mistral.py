"""Mistral: `[TOOL_CALLS]`, and then either a list, `[{"name": …, "arguments": {…}}, …]`, or `name{…}`.

The second form may have `[ARGS]` between name and arguments, and a `[CALL_ID]…` before it. A forced call is a
list at the very beginning of the output, without the delimiter, a special token that no grammar can spell.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from engine.text.parsers.events import CallArguments, CallBegun, CallEnded, TextPiece, Tool, ToolEvent
from engine.text.parsers.json_call import JsonCall
from engine.text.parsers.json_scan import ObjectScanner
from engine.text.parsers.text_scanner import TextScanner
from engine.text.parsers.tool_constraints import DelimitedCalls, TagFormat, ToolSchema, call_tag, quoted
from engine.text.parsers.tool_format import ToolFormat

TOOL_CALLS, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_MAX_HEAD = 512  # characters of a name and what stands between it and the arguments
_HEAD = re.compile(r"\s*(?P<name>[^\s{}\[\]]+)\s*(?:\[CALL_ID\][^\[{]*)?(?:\[ARGS\]\s*)?(?=\{)")
# Matches what may still become a head: each of its parts as far as present.
_PART = re.compile(r"\s*[^\s{}\[\]]*\s*(?:\[CALL_ID\][^\[{]*)?(?:\[ARGS\]\s*)?(?P<rest>.*)", re.DOTALL)


class MistralParser:
    def __init__(self, tools: Sequence[Tool]) -> None:
        self._names = frozenset(tool["function"]["name"] for tool in tools)
        self._scanner = TextScanner((TOOL_CALLS,))
        self._num_calls = 0
        self._is_at_start = True
        self._opened: str | None = ""  # text after a delimiter or at the start, until it can be classified
        self._prefix = ""  # the text before it, reported if it is not a call
        self._in_list = False
        self._object: JsonCall | None = None
        self._arguments: ObjectScanner | None = None

    def feed(self, text: str) -> list[ToolEvent]:
        events: list[ToolEvent] = []
        while text:
            text = self._read_some(text, events)
        return events

    def _read_some(self, text: str, events: list[ToolEvent]) -> str:
        """Read part of `text`; returns the rest."""
        if self._object is not None:
            return self._continue_object(self._object, text, events)
        if self._arguments is not None:
            return self._pass_on(self._arguments, text, events)
        if self._in_list:
            return self._between(text, events)
        if self._opened is not None:
            return self._open(self._opened + text, events)
        delimiter, text = self._scanner.feed(text, events)
        if delimiter:
            self._opened, self._prefix = "", self._scanner.pop_blanks() + TOOL_CALLS
        return text

    def finish(self) -> list[ToolEvent]:
        if self._object is not None:
            return self._object.finish()
        if self._arguments is not None:
            return [CallEnded(self._num_calls)]
        if self._opened is not None:
            rest = self._prefix + self._opened
            return [TextPiece(rest)] if rest else []
        return self._scanner.finish(after_call=self._num_calls > 0)

    def _open(self, text: str, events: list[ToolEvent]) -> str:
        """After a delimiter: a list, an object, or a name and its arguments."""
        body = text.lstrip()
        blank = text[: len(text) - len(body)]
        if self._is_at_start and body[:1] not in ("", "["):
            return self._close(text)
        if body.startswith("["):
            item = body[1:].lstrip()
            if not item or item[0] == "{":
                return self._begin_list(blank, body, item)
            return self._give_up(text, events)
        if body.startswith("{"):
            self._begin_object(self._prefix + blank)
            return body
        return self._name(text, events)

    def _begin_list(self, blank: str, body: str, item: str) -> str:
        if not item:
            self._opened = blank + body
            return ""
        before = self._prefix + blank + body[: len(body) - len(item)]
        only_known = self._is_at_start
        self._in_list = True
        self._begin_object(before, only_known=only_known)
        return item

    def _begin_object(self, prefix: str, *, only_known: bool = False) -> None:
        accepts = self._names.__contains__ if only_known else None
        self._object = JsonCall(self._num_calls, prefix, accepts)
        self._opened, self._is_at_start = None, False

    def _name(self, text: str, events: list[ToolEvent]) -> str:
        if head := _HEAD.match(text, 0, _MAX_HEAD + 1):
            events.append(CallBegun(self._num_calls, head["name"]))
            self._opened, self._arguments = None, ObjectScanner()
            return text[head.end() :]
        if len(text) <= _MAX_HEAD and _may_become_head(text):
            self._opened = text
            return ""
        return self._give_up(text, events)

    def _give_up(self, text: str, events: list[ToolEvent]) -> str:
        """No call follows the delimiter: treat it and the rest as text."""
        if self._prefix:
            events.append(TextPiece(self._prefix))
        return self._close(text)

    def _close(self, text: str) -> str:
        self._opened, self._prefix, self._is_at_start = None, "", False
        return text

    def _continue_object(self, call: JsonCall, text: str, events: list[ToolEvent]) -> str:
        found, text = call.feed(text)
        events += found
        if call.is_over:
            self._object = None
            self._num_calls += call.is_call
            self._in_list &= call.is_call
        return text

    def _between(self, text: str, events: list[ToolEvent]) -> str:
        """Between a list's calls."""
        text = text.lstrip(", \t\r\n")
        if text.startswith("{"):
            self._begin_object("")
        elif text:
            self._in_list = False
            return text.removeprefix("]")
        return text

    def _pass_on(self, arguments: ObjectScanner, text: str, events: list[ToolEvent]) -> str:
        count = arguments.feed(text)
        if count:
            events.append(CallArguments(self._num_calls, text[:count]))
        if arguments.is_over:
            events.append(CallEnded(self._num_calls))
            self._num_calls += 1
            self._arguments = None
        return text[count:]


def _may_become_head(text: str) -> bool:
    part = _PART.match(text)
    if part is None:
        return False
    rest = part["rest"]
    return not rest or any(delimiter.startswith(rest) for delimiter in (CALL_ID, ARGS))


_ITEMS = DelimitedCalls(
    begin=lambda name: f'{{"name": {quoted(name)}, "arguments": ', end="}", separator=", "
)


def _constraint(tools: Sequence[ToolSchema], is_auto: bool, parallel: bool) -> TagFormat | None:
    if is_auto:
        return None  # calls begin with a special token
    return call_tag("[", _ITEMS(tools, is_auto, parallel), "]")


MISTRAL = ToolFormat(
    names=("mistral",),
    parser=MistralParser,
    matches_template=lambda template: TOOL_CALLS in template,
    constraint=_constraint,
    needs_special_tokens=True,
)
