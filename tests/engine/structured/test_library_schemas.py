"""Schemas from libraries and agents: every output under them is valid."""

from __future__ import annotations

import datetime
import decimal
import enum
import ipaddress
import json
import pathlib
import uuid
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jsonschema_rs
import pytest
from pydantic import (
    AnyUrl,
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    JsonValue,
    SecretStr,
    TypeAdapter,
)

from engine.structured.spec import StructuredKind, StructuredOutput
from engine.text.parsers.choice import named_format
from engine.text.parsers.tools import TOOL_FORMATS
from tests.engine.structured.agent_tools import TOOLS
from tests.engine.structured.walking import Walker

_WALKS = 3
_MAX_TOKENS = 600


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog", "hound"] = "dog"
    name: str = Field("Rex", min_length=1, max_length=20)


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class Node(BaseModel):
    value: bool
    children: list[Node] = Field(default=[], max_length=1)


class Linked(BaseModel):
    value: Size
    next: Linked | None = None


@dataclass
class Point:
    x: int
    y: float | None = None


class Pair(NamedTuple):
    name: str
    size: Size


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    colour: Colour | None = Field(None, description="Which", examples=["red"], deprecated=True)


class Rich(BaseModel):
    """A model with fields of many types."""

    id: uuid.UUID
    at: datetime.datetime
    price: decimal.Decimal = Field(max_digits=5, decimal_places=2)
    secret: SecretStr | None = None
    path: pathlib.Path = pathlib.Path("/tmp")  # noqa: S108 - a default that is never opened
    pets: list[Pet] = Field(min_length=1, max_length=2)
    scores: dict[Colour, Annotated[float, Field(ge=0, lt=1)]] = {}
    point: Point
    pair: tuple[Size, bool]
    code: Annotated[str, Field(pattern=r"^[A-Z]{2}\d+$", max_length=8)]


TYPES: dict[str, Any] = {
    "datetime": datetime.datetime,
    "date": datetime.date,
    "time": datetime.time,
    "timedelta": datetime.timedelta,
    "decimal": decimal.Decimal,
    "decimal of two places": Annotated[decimal.Decimal, Field(max_digits=5, decimal_places=2)],
    "uuid": uuid.UUID,
    "path": pathlib.Path,
    "secret": SecretStr,
    "bytes": bytes,
    "base64": Base64Bytes,
    "url": AnyUrl,
    "short url": Annotated[HttpUrl, Field(max_length=60)],
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "network": ipaddress.IPv4Network,
    "optional": int | None,
    "union": int | str | None,
    "numbers": int | float,
    "literal": Literal["a", 1, True, None],
    "enum": Colour,
    "integers' enum": Size,
    "set of an enum": set[Colour],
    "set of literals": frozenset[Literal[1, 2, 3]],
    "tuple": tuple[int, bool],
    "tuple of any length": tuple[int, ...],
    "empty tuple": tuple[()],
    "mapping": dict[str, int],
    "mapping of enums": dict[Colour, int],
    "mapping of literals": dict[Literal["a", "b"], bool],
    "mapping of numbers": dict[int, bool],
    "mapping of ids": dict[uuid.UUID, bool],
    "mapping of patterns": dict[Annotated[str, Field(pattern="^[a-z]+$")], bool],
    "mapping of one at least": Annotated[dict[str, int], Field(min_length=1, max_length=2)],
    "pattern and length": Annotated[str, Field(pattern="[a-z]", min_length=3, max_length=10)],
    "bounded integer": Annotated[int, Field(ge=1, lt=100)],
    "bounded number": Annotated[float, Field(gt=0, le=1)],
    "multiples": Annotated[int, Field(multiple_of=5, ge=0, le=100)],
    "list": Annotated[list[Size], Field(min_length=1, max_length=3)],
    "anything": JsonValue,
    "dataclass": Point,
    "named tuple": Pair,
    "discriminated": Pet,
    "plain union": Cat | Dog,
    "recursive": Node,
    "linked": Linked,
    "closed": Closed,
    "rich": Rich,
}


@pytest.fixture(scope="module")
def walker() -> Walker:
    return Walker()


async def _walk(walker: Walker, schema: dict[str, Any]) -> list[Any]:
    wanted = StructuredOutput(StructuredKind.JSON_SCHEMA, json.dumps(schema), "response_format")
    compiled = await walker.grammar_compiler.compile(wanted)
    texts = [walker.walk(compiled, seed, _MAX_TOKENS) for seed in range(_WALKS)]
    # A number may have more digits than a float takes, which isn't the schema's matter.
    return [json.loads(text, parse_float=_finite) for text in texts if text is not None]


def _finite(text: str) -> float:
    return max(-1e300, min(float(text), 1e300))


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
async def test_outputs_are_valid_for_pydantic(walker: Walker, kind: Any) -> None:
    schema = TypeAdapter(kind).json_schema()
    values = await _walk(walker, schema)
    assert values
    for value in values:
        jsonschema_rs.validate(schema, value, validate_formats=True)


@pytest.mark.parametrize("schema", TOOLS.values(), ids=TOOLS)
async def test_outputs_are_valid_arguments_of_the_tool(walker: Walker, schema: dict[str, Any]) -> None:
    values = await _walk(walker, schema)
    assert values
    for value in values:
        jsonschema_rs.validate(_without_nullable(schema), value, validate_formats=True)


@pytest.mark.parametrize("parser", ["hermes", "qwen3_coder", "llama3_json", "mistral"])
async def test_all_tools_of_an_agent_are_forced_together(walker: Walker, parser: str) -> None:
    tools = {
        name: {"type": "function", "function": {"name": name, "parameters": schema, "strict": True}}
        for name, schema in TOOLS.items()
    }
    tag = named_format(TOOL_FORMATS, parser).call_constraint(tools, "required", parallel=True)
    assert tag is not None
    await walker.grammar_compiler.compile(StructuredOutput(StructuredKind.TOOL_CALLS, tag, "tools"))


def _without_nullable(schema: Any) -> Any:
    """The schema in the current JSON Schema draft."""
    if isinstance(schema, list):
        return [_without_nullable(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    converted = {word: _without_nullable(value) for word, value in schema.items() if word != "nullable"}
    if schema.get("exclusiveMinimum") is True:
        converted["exclusiveMinimum"] = converted.pop("minimum")
    if isinstance(converted.get("items"), list):
        converted["prefixItems"] = converted.pop("items")
    return {"anyOf": [converted, {"type": "null"}]} if schema.get("nullable") is True else converted
