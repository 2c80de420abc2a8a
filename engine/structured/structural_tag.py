"""Structural tags: text with parts that follow schemas, expressions or grammars, written as Lark's rules.

Parts that are regular become one terminal together with their neighbours, as a terminal of the compiler takes
as much text as it can: an expression would take the delimiter after it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import InvalidRequest
from engine.structured.ebnf import to_lark
from engine.structured.json_frames import HOLE, framed, union
from engine.structured.json_schema import normalise_json_schema
from engine.structured.json_strings import plain_pattern
from engine.structured.lark import Part, Rules, either, literal, optional, regex, repeated, sequence, without
from engine.structured.regex import UnsupportedPattern
from engine.structured.xml_parameters import parameters_part

MAX_DEPTH = 64
_XML_STYLE = "qwen_xml"


def write_structural_tag(tag: Any, param: str, *, is_ours: bool = False) -> tuple[str, Sequence[str]]:
    """The tag as a grammar in Lark's form, and grammars that it names @g1, @g2 … Raises InvalidRequest.

    `is_ours`: the tag was made from tools, and each schema has a word `tool` beside it: its source (`param`),
    whether it must be enforced exactly (`is_strict`), and the advice if it can't be (`advice`).
    """
    if not isinstance(tag, dict):
        raise InvalidRequest(f"{param} must be an object, not {tag!r:.40}.", param=param)
    modern = _modern(tag, param)
    rules = Rules()
    start = _Writer(rules, is_ours).write(modern.get("format"), f"{param}.format")
    return rules.grammar(start), rules.apart


def _modern(tag: dict[str, Any], param: str) -> dict[str, Any]:
    """Convert from the older form, `{"structures": [{begin, schema, end}], "triggers": […]}`."""
    if "structures" not in tag:
        return tag
    try:
        tags = [
            {
                "type": "tag",
                "begin": one["begin"],
                "content": {"type": "json_schema", "json_schema": one["schema"]},
                "end": one["end"],
            }
            for one in tag["structures"]
        ]
        form = {"type": "triggered_tags", "triggers": tag["triggers"], "tags": tags}
    except (KeyError, TypeError) as error:
        raise InvalidRequest(
            f"{param} needs triggers, and structures, a list of objects with begin, schema and end.",
            param=param,
        ) from error
    return {"type": "structural_tag", "format": form}


@dataclass(frozen=True, slots=True)
class _Field:
    """A part of the tag as the client wrote it."""

    value: dict[str, Any]
    path: str
    depth: int

    def wrong(self, name: str, what: str) -> InvalidRequest:
        return InvalidRequest(f"{self.path}.{name} {what}.", param=f"{self.path}.{name}")

    def text(self, name: str) -> str:
        value = self.value.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, f"must be a string, not {value!r:.40}")
        return value

    def texts(self, name: str) -> list[str]:
        value = self.value.get(name, [])
        if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
            raise self.wrong(name, "must be a list of strings, none of them empty")
        return value

    def flag(self, name: str) -> bool:
        return self.value.get(name) is True

    def count(self, name: str) -> int:
        value = self.value.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.wrong(name, f"must be a whole number, not {value!r:.40}")
        return value


class _Writer:
    def __init__(self, rules: Rules, is_ours: bool) -> None:
        self._rules = rules
        self._is_ours = is_ours
        self._as_json = False
        self._kinds: dict[str, Callable[[_Field], Part]] = {
            "const_string": lambda part: literal(part.text("value")),
            "json_schema": self._schema,
            "qwen_xml_parameter": lambda part: self._schema(part, style=_XML_STYLE),
            "any_text": lambda part: without(part.texts("excludes")),
            "regex": self._regex,
            "grammar": self._grammar,
            "sequence": lambda part: sequence(self._rules, self._inner(part, "elements")),
            "or": self._or,
            "tag": self._tag,
            "triggered_tags": self._triggered,
            "tags_with_separator": self._separated,
            "optional": lambda part: optional(self._content(part)),
            "plus": lambda part: repeated(self._content(part), 1, None),
            "star": lambda part: repeated(self._content(part), 0, None),
            "repeat": lambda part: repeated(self._content(part), part.count("min"), part.count("max")),
        }

    def write(self, value: Any, path: str, depth: int = 0) -> Part:
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"{path:.200}: nested more than {MAX_DEPTH} deep.", param=path)
        if not isinstance(value, dict):
            raise InvalidRequest(f"{path} must be an object, not {value!r:.40}.", param=path)
        part = _Field(value, path, depth)
        kind = value.get("type")
        if not isinstance(kind, str) or kind not in self._kinds:
            known = ", ".join(self._kinds)
            raise part.wrong("type", f"is {kind!r:.40}; supported are {known}")
        return self._kinds[kind](part)

    def _content(self, part: _Field) -> Part:
        return self.write(part.value.get("content"), f"{part.path}.content", part.depth + 1)

    def _inner(self, part: _Field, name: str) -> list[Part]:
        return [self.write(one, path, part.depth + 1) for one, path in self._listed(part, name)]

    def _listed(self, part: _Field, name: str) -> list[tuple[Any, str]]:
        value = part.value.get(name)
        if not isinstance(value, list) or not value:
            raise part.wrong(name, "must be a list with something in it")
        return [(one, f"{part.path}.{name}[{index}]") for index, one in enumerate(value)]

    def _schema(self, part: _Field, style: str = "") -> Part:
        style = style or part.value.get("style", "json")
        if style not in ("json", _XML_STYLE):
            raise part.wrong("style", f"is {style!r:.40}; supported are json and {_XML_STYLE}")
        normalised = self._normalised(part)
        if style == _XML_STYLE:
            return parameters_part(self._rules, normalised)
        return self._rules.json(normalised)

    def _normalised(self, part: _Field) -> Any:
        if "json_schema" not in part.value:
            raise part.wrong("json_schema", "is required")
        tool = part.value.get("tool", {}) if self._is_ours else {}
        return normalise_json_schema(
            part.value["json_schema"],
            tool.get("param", f"{part.path}.json_schema"),
            is_strict=tool.get("is_strict", True),
            advice=tool.get("advice", ""),
        )

    def _regex(self, part: _Field) -> Part:
        try:
            return regex(plain_pattern(part.text("pattern")))
        except UnsupportedPattern as error:
            raise part.wrong("pattern", f"can't be enforced: {error}") from error

    def _grammar(self, part: _Field) -> Part:
        source = part.text("grammar")
        return self._rules.grammar_apart(
            to_lark(source, f"{part.path}.grammar") if "::=" in source else source
        )

    def _tag(self, part: _Field, begin: str | None = None) -> Part:
        end_text = part.value.get("end")
        ends = [end_text] if isinstance(end_text, str) else part.texts("end")
        if self._as_json and begin is None and (schema := self._tag_as_schema(part)) is not None:
            return self._rules.json(schema)
        start = part.text("begin") if begin is None else begin
        content = part.value.get("content")
        if isinstance(content, dict) and content.get("type") == "any_text" and all(ends):
            excludes = content.get("excludes") or []
            inner = without([*excludes, *ends])  # the text ends with the first end
        else:
            inner = self._content(part)
        end = either(self._rules, [literal(one) for one in ends]) if ends else literal("")
        return sequence(self._rules, [literal(start), inner, end])

    def _triggered(self, part: _Field) -> Part:
        triggers = part.texts("triggers")
        excludes = part.texts("excludes")
        calls: list[Part] = []
        tags = [_Field(one, path, part.depth + 1) for one, path in self._listed(part, "tags")]
        for trigger in triggers:
            own = [
                self._tag(tag, tag.text("begin").removeprefix(trigger))
                for tag in tags
                if tag.text("begin").startswith(trigger)
            ]
            if own:
                before = self._rules.text_until(trigger, [*excludes, *(t for t in triggers if t != trigger)])
                calls.append(sequence(self._rules, [before, either(self._rules, own)]))
        if unmet := [tag for tag in tags if not any(tag.text("begin").startswith(t) for t in triggers)]:
            raise unmet[0].wrong("begin", "begins with none of the triggers")
        call = either(self._rules, calls)
        rest = without([*excludes, *triggers])
        if part.flag("stop_after_first"):
            return call if part.flag("at_least_one") else either(self._rules, [call, rest])
        return sequence(self._rules, [repeated(call, int(part.flag("at_least_one")), None), rest])

    def _separated(self, part: _Field) -> Part:
        tag = either(self._rules, self._inner(part, "tags"))
        if not part.flag("stop_after_first"):
            more = sequence(self._rules, [literal(part.text("separator")), tag])
            tag = sequence(self._rules, [tag, repeated(more, 0, None)])
        return tag if part.flag("at_least_one") else optional(tag)

    def _or(self, part: _Field) -> Part:
        """Beside a schema, all that is JSON is written as one, as the compiler can't tell it from a text."""
        elements = self._listed(part, "elements")
        is_json = any(isinstance(one, dict) and one.get("type") == "json_schema" for one, _ in elements)
        before, self._as_json = self._as_json, self._as_json or is_json
        written = [self.write(one, path, part.depth + 1) for one, path in elements]
        self._as_json = before
        return either(self._rules, written)

    def _as_schema(self, value: Any, path: str, depth: int) -> Any | None:
        """A part that is JSON as one schema; None if it isn't JSON."""
        if not isinstance(value, dict) or depth > MAX_DEPTH:
            return None
        part = _Field(value, path, depth)
        match value.get("type"):
            case "json_schema" if value.get("style", "json") == "json":
                return self._normalised(part)
            case "tag":
                return self._tag_as_schema(part)
        return None

    def _tag_as_schema(self, part: _Field) -> Any | None:
        begin, end, content = (part.value.get(name) for name in ("begin", "end", "content"))
        if not isinstance(begin, str) or not isinstance(end, str) or not isinstance(content, dict):
            return None
        try:
            frame = json.loads(f"{begin}{json.dumps(HOLE)}{end}")
        except ValueError:
            return None
        if content.get("type") == "tags_with_separator" and content.get("separator", "").strip() == ",":
            inner = self._items_as_schema(_Field(content, f"{part.path}.content", part.depth + 1))
            return inner if frame == [HOLE] else None
        inner = self._as_schema(content, f"{part.path}.content", part.depth + 1)
        return None if inner is None else framed(frame, inner)

    def _items_as_schema(self, part: _Field) -> Any | None:
        found = [self._as_schema(one, at, part.depth + 1) for one, at in self._listed(part, "tags")]
        if None in found:
            return None
        joined = union(found)
        definitions = joined.pop("$defs", {})
        counts = {"minItems": int(part.flag("at_least_one"))}
        counts |= {"maxItems": 1} if part.flag("stop_after_first") else {}
        return {"type": "array", "items": joined, **counts, **({"$defs": definitions} if definitions else {})}
