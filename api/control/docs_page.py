"""`GET /docs`: every route on one page, rendered from the OpenAPI document.

The page loads nothing, from Berth or elsewhere: it works without a network, and its Content-Security-Policy
forbids everything but its own style.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em}
body{color:#1c2733;background:#fff}
a{color:#0b62a4}h2{margin:2em 0 .5em;font-size:1.2em}details{border-top:1px solid #d8dee4}
summary{cursor:pointer;padding:.35em 0;display:flex;gap:.8em;flex-wrap:wrap}
summary:hover{background:#f3f6f8}code{font:13px/1.5 ui-monospace,monospace;overflow-wrap:anywhere}
b{font:bold 12px/1.9 ui-monospace,monospace;min-width:4.5em}.said{color:#57636e}
table{border-collapse:collapse;margin:.3em 0 1em}td{padding:.15em 1.2em .15em 0;vertical-align:top}
@media(prefers-color-scheme:dark){body{color:#d5dde5;background:#14191e}a{color:#6db3e8}
summary:hover{background:#1e252c}details{border-color:#333d47}.said{color:#94a1ad}}
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_SCHEMAS = "#/components/schemas/"
_CODE = re.compile(r"`([^`]+)`")

Json = Mapping[str, Any]


def render(document: Json) -> str:
    """Render an OpenAPI document as a page."""
    info = document["info"]
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = next(iter(operation.get("tags", ())), "other")
            groups.setdefault(tag, []).append(_operation(method.upper(), path, operation))
    routes = (f"<h2>{escape(tag.capitalize())}</h2>{''.join(rows)}" for tag, rows in groups.items())
    schemas = document.get("components", {}).get("schemas", {})
    bodies = (_schema(name, schema) for name, schema in schemas.items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        f"<p>{_text(info.get('description', ''))}</p>"
        '<p>Every GET route also accepts HEAD. As a document: <a href="openapi.json">openapi.json</a></p>'
        f"{''.join(routes)}<h2>Bodies</h2>{''.join(bodies)}</html>"
    )


def _operation(method: str, path: str, operation: Json) -> str:
    description = operation.get("description", "")
    fields = [
        _row(param["name"], param["schema"], param["in"], bool(param.get("required")), param)
        for param in _params(operation)
    ]
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        fields.append(_row("body", content.get("schema", {}), media_type, True, {}))
    for status, answer in operation.get("responses", {}).items():
        for content in (answer.get("content") or {"": {}}).values():
            fields.append(_row(status, content.get("schema", {}), "answer", False, answer))
    return (
        f"<details><summary><b>{method}</b><code>{escape(path)}</code>"
        f'<span class="said">{_text(operation.get("summary", ""))}</span></summary>'
        f"<p>{_text(description)}</p>{_table(fields)}</details>"
    )


def _params(operation: Json) -> Iterable[Json]:
    found: Iterable[Json] = operation.get("parameters", ())
    return found


def _schema(name: str, schema: Json) -> str:
    required = schema.get("required", ())
    properties: Json = schema.get("properties", {})
    rows = [_row(field, one, "", field in required, one) for field, one in properties.items()]
    if not rows:
        rows = [_row("", schema, "", False, schema)]
    return (
        f'<details id="{escape(name)}"><summary><code>{escape(name)}</code>'
        f'<span class="said">{_text(schema.get("description", ""))}</span></summary>{_table(rows)}</details>'
    )


def _row(name: str, schema: Json, where: str, is_required: bool, described: Json) -> str:
    words = describe(schema)
    if (link := schema.get("$ref", "")).startswith(_SCHEMAS):
        target = escape(link.removeprefix(_SCHEMAS))
        kind = f'<a href="#{target}">{target}</a>'
    else:
        kind = escape(words)
    default = f", by default {schema['default']!r}" if schema.get("default") is not None else ""
    said = _text(described.get("description", "")) + escape(default)
    cells = (f"<code>{escape(name)}</code>", escape(where), kind, "required" if is_required else "", said)
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _table(rows: Iterable[str]) -> str:
    return f"<table>{''.join(rows)}</table>"


def _text(text: str) -> str:
    """Prose with its `code` marked up."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def describe(schema: Json) -> str:
    """A JSON schema in short: `integer ≥ 1`, `string | array of string | null`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " | ".join(dict.fromkeys(describe(one) for one in schema[union]))
    if "enum" in schema or "const" in schema:
        return " | ".join(f'"{value}"' for value in schema.get("enum", [schema.get("const")]))
    words = str(schema.get("type", "anything"))
    if words == "array":
        return f"array of {describe(schema.get('items', {}))}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]}" for key, sign in signs.items() if key in schema]
    return " ".join([words, ", ".join(limits)]).strip()
