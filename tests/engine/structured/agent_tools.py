"""Tools' input schemas in the manner of agents and of MCP servers that people use, by name."""

from __future__ import annotations

from typing import Any

_DRAFT_7 = {"$schema": "http://json-schema.org/draft-07/schema#", "additionalProperties": False}
_2020 = {"$schema": "https://json-schema.org/draft/2020-12/schema", "additionalProperties": False}
_TEXT = {"type": "string"}


def _object(required: list[str], /, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


_RICH_TEXT = {
    "type": "object",
    "properties": {
        "type": {"enum": ["text"]},
        "text": {
            "type": "object",
            "properties": {
                "content": {"type": "string", "maxLength": 2000},
                "link": {
                    "type": ["object", "null"],
                    "properties": {"url": {"type": "string"}},
                    "required": ["url"],
                },
            },
            "required": ["content"],
            "additionalProperties": False,
        },
    },
    "required": ["text"],
    "additionalProperties": False,
}

TOOLS: dict[str, dict[str, Any]] = {
    # A coding agent's own.
    "Bash": _object(
        ["command"],
        command=_text("The command to execute"),
        timeout={"type": "number", "description": "Milliseconds (max 600000)"},
        description=_text("5-10 words"),
        run_in_background={"type": "boolean"},
    )
    | _DRAFT_7,
    "Edit": _object(
        ["file_path", "old_string", "new_string"],
        file_path=_text("The absolute path"),
        old_string=_text("What to replace"),
        new_string=_text("What to put there"),
        replace_all={"type": "boolean", "default": False},
    )
    | _2020,
    "MultiEdit": _object(
        ["file_path", "edits"],
        file_path=_TEXT,
        edits={
            "type": "array",
            "items": _object(
                ["old_string"], old_string=_TEXT, replace_all={"type": "boolean", "default": False}
            )
            | {"additionalProperties": False},
            "minItems": 1,
        },
    )
    | _DRAFT_7,
    "WebFetch": _object(["url", "prompt"], url=_text("URL", format="uri"), prompt=_TEXT) | _DRAFT_7,
    "TodoWrite": _object(
        ["todos"],
        todos={
            "type": "array",
            "items": _object(
                ["content", "status"],
                content={"type": "string", "minLength": 1},
                status={"type": "string", "enum": ["pending", "in_progress", "completed"]},
            )
            | {"additionalProperties": False},
        },
    )
    | _DRAFT_7,
    "AskUserQuestion": _object(
        ["questions"],
        questions={
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": _object(
                ["question", "options"],
                question=_TEXT,
                multiSelect={"default": False, "type": "boolean"},
                options={
                    "type": "array",
                    "minItems": 2,
                    "maxItems": 4,
                    "items": _object(["label"], label=_TEXT),
                },
            ),
        },
        answers={
            "type": "object",
            "propertyNames": {"type": "string"},
            "additionalProperties": {"type": "string"},
        },
        metadata={"type": "object", "properties": {"source": _TEXT}, "additionalProperties": False},
    )
    | _2020,
    "Grep": _object(
        ["pattern"],
        **{
            "pattern": _TEXT,
            "output_mode": {"type": "string", "enum": ["content", "files_with_matches", "count"]},
            "-B": {"type": "number"},
            "-i": {"type": "boolean"},
            "head_limit": {"type": "number", "default": 250},
        },
    )
    | _DRAFT_7,
    "NotebookEdit": _object(
        ["notebook_path"],
        notebook_path=_TEXT,
        cell_type={"type": "string", "enum": ["code", "markdown"]},
        cell_number={"type": "integer", "minimum": 0, "maximum": 9007199254740991},
    )
    | _2020,
    "shell": _object(
        ["command"],
        command={"type": "array", "items": _TEXT},
        timeout_ms={"type": "number"},
        sandbox_permissions={"type": "string"},
    )
    | {"additionalProperties": False},
    "update_plan": _object(
        ["plan"],
        explanation=_TEXT,
        plan={
            "type": "array",
            "items": _object(["step", "status"], step=_TEXT, status=_text("pending, in_progress, completed"))
            | {"additionalProperties": False},
        },
    )
    | {"additionalProperties": False},
    # MCP servers.
    "read_text_file": _object(
        ["path"], path=_TEXT, tail={"type": "number", "description": "Last lines"}, head={"type": "number"}
    )
    | _DRAFT_7,
    "read_multiple_files": _object(
        ["paths"], paths={"type": "array", "items": _TEXT, "minItems": 1, "description": "Paths"}
    )
    | _DRAFT_7,
    "list_allowed_directories": {"type": "object", "properties": {}, "required": []},
    "list_issues": _object(
        ["owner", "repo"],
        owner=_TEXT,
        repo=_TEXT,
        direction={"type": "string", "enum": ["ASC", "DESC"]},
        labels={"type": "array", "items": _TEXT},
        perPage={"type": "number", "minimum": 1, "maximum": 100},
        since=_text("ISO 8601", format="date-time"),
    ),
    "create_issue": _object(
        ["owner", "repo", "title"],
        owner=_TEXT,
        repo=_TEXT,
        title={"type": "string", "maxLength": 256},
        body={"type": ["string", "null"]},
        milestone={"type": "integer", "format": "int64", "nullable": True},
        assignees={"type": "array", "items": _TEXT, "maxItems": 10},
    ),
    "create_or_update_file": _object(
        ["path", "content"],
        path=_TEXT,
        content=_text("base64", format="byte", contentEncoding="base64"),
        sha=_TEXT,
    ),
    "browser_resize": _object(["width", "height"], width={"type": "number"}, height={"type": "number"})
    | _DRAFT_7,
    "browser_fill_form": _object(
        ["fields"],
        fields={
            "type": "array",
            "items": _object(
                ["name", "type"],
                name=_TEXT,
                type={"type": "string", "enum": ["textbox", "checkbox", "radio", "combobox", "slider"]},
            )
            | {"additionalProperties": False},
        },
    )
    | _DRAFT_7,
    "browser_click": _object(
        ["ref"],
        ref=_TEXT,
        button={"type": "string", "enum": ["left", "right", "middle"]},
        modifiers={"type": "array", "items": {"type": "string", "enum": ["Alt", "Control", "Meta", "Shift"]}},
    )
    | _DRAFT_7,
    "post_page": {
        **_object(
            ["parent", "properties"],
            parent={
                "oneOf": [
                    _object(["page_id"], page_id=_text("a page", format="uuid"))
                    | {"additionalProperties": False},
                    _object(["database_id"], database_id={"type": "string"})
                    | {"additionalProperties": False},
                ]
            },
            properties={
                "type": "object",
                "properties": {"title": {"type": "array", "items": {"$ref": "#/$defs/rt"}}},
            },
            icon={"type": "string", "format": "json"},
            children={"type": "array", "items": {"$ref": "#/$defs/block"}, "maxItems": 100},
        ),
        "$defs": {
            "rt": _RICH_TEXT,
            "block": {
                "anyOf": [{"$ref": "#/$defs/paragraph"}, {"$ref": "#/$defs/bullet"}],
            },
            "paragraph": _object(
                ["type"],
                type={"const": "paragraph"},
                rich_text={"type": "array", "items": {"$ref": "#/$defs/rt"}},
            ),
            "bullet": _object(
                ["type"],
                type={"const": "bullet"},
                children={"type": "array", "items": {"$ref": "#/$defs/block"}},
            ),
        },
    },
    "query_database": _object(
        ["database_id"],
        database_id=_text("ID", format="uuid"),
        filter={"type": "object", "description": "A filter", "additionalProperties": True},
        page_size={"type": "integer", "format": "int32", "default": 100, "minimum": 1, "maximum": 100},
    ),
    "memory_create_entities": _object(
        ["entities"],
        entities={
            "type": "array",
            "items": _object(
                ["name", "observations"], name=_TEXT, observations={"type": "array", "items": _TEXT}
            ),
        },
    ),
    "sequential_thinking": _object(
        ["thought", "thoughtNumber"],
        thought=_TEXT,
        thoughtNumber={"type": "integer", "minimum": 1, "description": "Current"},
        needsMoreThoughts={"type": "boolean"},
    ),
    "fetch": {
        "description": "Parameters for fetching a URL.",
        "properties": {
            "url": {"description": "URL", "format": "uri", "minLength": 1, "title": "Url", "type": "string"},
            "max_length": {
                "default": 5000,
                "exclusiveMaximum": 1000000,
                "exclusiveMinimum": 0,
                "type": "integer",
            },
            "raw": {"default": False, "title": "Raw", "type": "boolean"},
        },
        "required": ["url"],
        "title": "Fetch",
        "type": "object",
    },
    # From converters.
    "zod-to-json-schema": _object(
        ["id", "kind", "tags", "at"],
        id={"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$", "maxLength": 64},
        kind={"anyOf": [{"type": "string", "const": "a"}, {"type": "string", "const": "b"}]},
        tags={"type": "object", "additionalProperties": {"anyOf": [{"type": "string"}, {"not": {}}]}},
        at={"type": "string", "format": "date-time"},
        maybe={"anyOf": [{"anyOf": [{"not": {}}, {"type": "string"}]}, {"type": "null"}]},
        both={"allOf": [_object(["a"], a=_TEXT), _object(["b"], b={"type": "number"})]},
        again={"$ref": "#/properties/both"},
        positive={"type": "number", "exclusiveMinimum": 0},
        port={"type": "integer", "minimum": 0, "maximum": 65535},
        pair={
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "items": [{"type": "string"}, {"type": "number"}],
        },
        record={
            "type": "object",
            "propertyNames": {"type": "string", "enum": ["x", "y"]},
            "additionalProperties": {"type": "number"},
        },
    )
    | _DRAFT_7,
    "openapi-3.0": {
        **_object(
            ["petId", "status"],
            petId={
                "type": "integer",
                "format": "int64",
                "example": 10,
                "minimum": 0,
                "exclusiveMinimum": True,
            },
            status={"type": "string", "enum": ["available", "sold"], "default": "available"},
            price={"type": "number", "format": "double", "nullable": True},
            category={"allOf": [{"$ref": "#/components/schemas/Category"}], "nullable": True},
            photo={"type": "string", "format": "binary"},
            secret={"type": "string", "format": "password", "writeOnly": True, "minLength": 8},
            pet={
                "oneOf": [{"$ref": "#/components/schemas/Cat"}, {"$ref": "#/components/schemas/Dog"}],
                "discriminator": {"propertyName": "petType"},
            },
            meta={"type": "object", "additionalProperties": {"type": "string"}, "x-internal": True},
        ),
        "components": {
            "schemas": {
                "Category": _object([], id={"type": "integer", "format": "int64"}, name={"type": "string"})
                | {"xml": {"name": "Category"}},
                "Pet": _object(["petType"], petType={"type": "string"})
                | {"discriminator": {"propertyName": "petType"}},
                "Cat": {
                    "allOf": [
                        {"$ref": "#/components/schemas/Pet"},
                        _object(["claws"], claws={"type": "boolean"}),
                    ]
                },
                "Dog": {
                    "allOf": [
                        {"$ref": "#/components/schemas/Pet"},
                        _object(["bark"], bark={"type": "boolean"}),
                    ]
                },
            }
        },
    },
    "schemars": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Request",
        "type": "object",
        "properties": {
            "limit": {"type": ["integer", "null"], "format": "uint32", "minimum": 0},
            "total": {"type": "integer", "format": "uint64", "minimum": 0, "maximum": 18446744073709551615},
            "ratio": {"type": "number", "format": "float"},
            "mode": {
                "oneOf": [{"type": "string", "const": "fast", "description": "Fast"}, {"const": "slow"}]
            },
            "target": {"anyOf": [{"$ref": "#/$defs/Target"}, {"type": "null"}]},
        },
        "required": ["total", "mode"],
        "$defs": {
            "Target": {
                "oneOf": [
                    _object(["File"], File=_TEXT) | {"additionalProperties": False},
                    _object(["Line"], Line={"type": "integer", "format": "int32"})
                    | {"additionalProperties": False},
                ]
            }
        },
    },
}
