"""Tools and tool choices of /v1/responses, as clients send them.

engine/server/openai/responses/toolbox.py maps them to functions for the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from engine.server.protocol.generation_body import STRICT_TOOL
from engine.server.protocol.limits import MAX_TOOLS
from engine.server.protocol.request_body import Ignored, Strict

_Name = Annotated[str, Field(min_length=1, max_length=256)]


def known_types(kind_of: Callable[[Any], str | None], what: str) -> Discriminator:
    """A discriminator whose errors name the field `type` (protocol/body_reader.py)."""
    return Discriminator(
        kind_of,
        custom_error_type="union_tag_unknown",
        custom_error_message=f"Input should be {what} of a known type",
    )


class _CallableTool(Strict):
    """Common fields of callable tools. Here the model may always call a tool directly."""

    name: _Name
    description: str | None = None
    allowed_callers: Ignored = None
    defer_loading: Ignored = None
    async_: Ignored = Field(default=None, alias="async")


class FunctionTool(_CallableTool):
    type: Literal["function"]
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(default=None, description=STRICT_TOOL)
    output_schema: Ignored = None


class PlainFormat(Strict):
    type: Literal["text"]


class GrammarFormat(Strict):
    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: str


class CustomTool(_CallableTool):
    """A tool that takes free text."""

    type: Literal["custom"]
    format: Annotated[PlainFormat | GrammarFormat, Field(discriminator="type")] | None = Field(
        default=None, description="A regex is enforced; a Lark grammar is shown to the model."
    )


class ForeignTool(Strict):
    """A hosted tool, which only its provider can run, such as a web search: ignored with a warning."""

    model_config = ConfigDict(extra="allow")

    type: str


def _kind_of_tool(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    known = ("function", "custom", "namespace", "tool_search")
    return kind if kind in known or not isinstance(kind, str) else "foreign"


def _kind_within(value: Any) -> str | None:
    kind = _kind_of_tool(value)
    return "foreign" if kind in ("namespace", "tool_search") else kind


class NamespaceTool(Strict):
    type: Literal["namespace"]
    name: _Name
    description: str | None = None
    tools: Annotated[
        list[
            Annotated[
                Annotated[FunctionTool, Tag("function")]
                | Annotated[CustomTool, Tag("custom")]
                | Annotated[ForeignTool, Tag("foreign")],
                known_types(_kind_within, "a tool"),
            ]
        ],
        Field(max_length=MAX_TOOLS),
    ]


class ToolSearchTool(Strict):
    type: Literal["tool_search"]
    execution: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None


Tools = Annotated[
    list[
        Annotated[
            Annotated[FunctionTool, Tag("function")]
            | Annotated[CustomTool, Tag("custom")]
            | Annotated[NamespaceTool, Tag("namespace")]
            | Annotated[ToolSearchTool, Tag("tool_search")]
            | Annotated[ForeignTool, Tag("foreign")],
            known_types(_kind_of_tool, "a tool"),
        ]
    ],
    Field(max_length=MAX_TOOLS),
]


class NamedChoice(Strict):
    type: Literal["function", "custom"]
    name: str
    namespace: str | None = None


class AllowedChoice(Strict):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)]


class HostedChoice(Strict):
    """The choice of a hosted tool: refused in toolbox.py."""

    type: str
    name: Ignored = None
    server_label: Ignored = None


def _kind_of_choice(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if isinstance(value, str):
        return "mode"
    return {"function": "named", "custom": "named", "allowed_tools": "allowed"}.get(str(kind), "hosted")


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[NamedChoice, Tag("named")]
    | Annotated[AllowedChoice, Tag("allowed")]
    | Annotated[HostedChoice, Tag("hosted")],
    Discriminator(_kind_of_choice),
]


def runnable(tools: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tools in a response object, without ignored ones."""
    return [
        {**tool, "tools": runnable(tool["tools"])} if tool["type"] == "namespace" else dict(tool)
        for tool in tools
        if _kind_of_tool(tool) != "foreign"
    ]
