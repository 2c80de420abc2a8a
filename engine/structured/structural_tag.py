"""Structural tags (text with parts that follow schemas, expressions or grammars), normalised part by part."""

from __future__ import annotations

from typing import Any

from engine.errors import InvalidRequest
from engine.structured.json_schema import normalise_json_schema
from engine.structured.json_strings import plain_pattern
from engine.structured.regex import UnsupportedPattern
from engine.structured.string_rules import StringRules

MAX_DEPTH = 64


def normalise_structural_tag(
    tag: Any, param: str, rules: StringRules, *, max_whitespace: int, is_ours: bool = False
) -> Any:
    """The tag with its schemas and expressions in a form that the compiler enforces. Raises InvalidRequest.

    `is_ours`: the tag was made from tools, and each schema has a word `tool` beside it: its source (`param`),
    whether it must be enforced exactly (`is_strict`), and the advice if it can't be (`advice`).
    """
    if not isinstance(tag, dict):
        raise InvalidRequest(f"{param} must be an object, not {tag!r:.40}.", param=param)
    return _Walk(rules, max_whitespace, is_ours).normalise(_modern(tag, param), param)


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


class _Walk:
    def __init__(self, rules: StringRules, max_whitespace: int, is_ours: bool) -> None:
        self._rules = rules
        self._max_whitespace = max_whitespace
        self._is_ours = is_ours

    def normalise(self, part: Any, path: str, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"{path:.200}: nested more than {MAX_DEPTH} deep.", param=path)
        if isinstance(part, list):
            return [self.normalise(one, f"{path}[{index}]", depth + 1) for index, one in enumerate(part)]
        if not isinstance(part, dict):
            return part
        if part.get("type") == "json_schema" and "json_schema" in part:
            return self._schema(part, path)
        if part.get("type") == "regex" and isinstance(part.get("pattern"), str):
            try:
                return {**part, "pattern": plain_pattern(part["pattern"])}
            except UnsupportedPattern as error:
                raise InvalidRequest(f"{path}.pattern: {error}.", param=f"{path}.pattern") from error
        return {name: self.normalise(one, f"{path}.{name}", depth + 1) for name, one in part.items()}

    def _schema(self, part: dict[str, Any], path: str) -> dict[str, Any]:
        tool = part.get("tool", {}) if self._is_ours else {}
        left = {name: value for name, value in part.items() if not (self._is_ours and name == "tool")}
        schema = normalise_json_schema(
            part["json_schema"],
            tool.get("param", f"{path}.json_schema"),
            self._rules,
            # In other styles than JSON a string has no quotes and escapes, so its pattern stays.
            is_json=part.get("style", "json") == "json",
            is_strict=tool.get("is_strict", True),
            advice=tool.get("advice", ""),
        )
        return {"max_whitespace_cnt": self._max_whitespace, **left, "json_schema": schema}
