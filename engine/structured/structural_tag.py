"""Structural tags (text with parts that follow schemas, expressions or grammars), checked part by part."""

from __future__ import annotations

from typing import Any

from engine.errors import InvalidRequest
from engine.structured.json_schema import follow_json_schema
from engine.structured.json_strings import plain_pattern
from engine.structured.regex import UnsupportedPattern
from engine.structured.string_rules import StringRules

MAX_DEPTH = 64


def follow_structural_tag(tag: Any, param: str, rules: StringRules, *, max_whitespace: int) -> Any:
    """The tag, its schemas and expressions as the compiler follows them. Raises InvalidRequest."""
    if not isinstance(tag, dict):
        raise InvalidRequest(f"{param} must be an object, not {tag!r:.40}.", param=param)
    return _follow(_modern(tag, param), param, rules, max_whitespace, 0)


def _modern(tag: dict[str, Any], param: str) -> dict[str, Any]:
    """Also from the older form, `{"structures": [{begin, schema, end}], "triggers": […]}`."""
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
            f"{param}: structures must be objects of begin, schema and end, beside triggers.", param=param
        ) from error
    return {"type": "structural_tag", "format": form}


def _follow(part: Any, path: str, rules: StringRules, max_whitespace: int, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"{path:.200}: nested more than {MAX_DEPTH} deep.", param=path)
    if isinstance(part, list):
        return [
            _follow(one, f"{path}[{index}]", rules, max_whitespace, depth + 1)
            for index, one in enumerate(part)
        ]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "json_schema" and "json_schema" in part:
        # In other styles than JSON a string stands without quotes and escapes, so its pattern stays.
        is_json = part.get("style", "json") == "json"
        schema = follow_json_schema(part["json_schema"], f"{path}.json_schema", rules, is_json=is_json)
        return {"max_whitespace_cnt": max_whitespace, **part, "json_schema": schema}
    if part.get("type") == "regex" and isinstance(part.get("pattern"), str):
        try:
            return {**part, "pattern": plain_pattern(part["pattern"])}
        except UnsupportedPattern as error:
            raise InvalidRequest(f"{path}.pattern: {error}.", param=f"{path}.pattern") from error
    return {
        name: _follow(one, f"{path}.{name}", rules, max_whitespace, depth + 1) for name, one in part.items()
    }
