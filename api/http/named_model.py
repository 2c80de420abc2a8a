"""Finds the model that a request names, in its query or its body. Pure; knows no models.

None is returned only if certainly no model is named. Anything ambiguous is rejected: a request for one model
must never be served by another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from pydantic_core import from_json

from api.http.json_structure import TooManyParts, check_parts

_BOM = b"\xef\xbb\xbf"
# A key may be "model" with some letters escaped: their escapes are \u0064 to \u006f.
_ESCAPE = b"\\u006"
_KEY = b'"model"'

MAX_NAME_BYTES = 1024
_MAX_SHOWN = 100  # characters quoted in a message


class InvalidBody(Exception):
    """The body can't be parsed; the message says why."""


class UnclearModel(Exception):
    """The request names its model ambiguously; the message continues the word `model`."""


def without_bom(body: bytes) -> bytes:
    """A JSON text without its byte order mark, which few engines accept."""
    return body.removeprefix(_BOM)


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises InvalidBody."""
    try:
        check_parts(body)
        value = from_json(body, allow_inf_nan=False)
    except TooManyParts as error:
        raise InvalidBody(str(error)) from None
    except ValueError as error:
        raise InvalidBody(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidBody("the body must be a JSON object")
    return value


def has_one_model(body: bytes) -> bool:
    """Whether a JSON body has the key `model` exactly once, without escapes. Fast."""
    return body.count(_KEY) == 1 and (
        b"\\" not in body or _ESCAPE not in body
    )  # a single byte is found faster


def model_in_object(body: bytes, fields: dict[str, Any]) -> str | None:
    """The model named by a JSON body, whose parsed form is `fields`. Raises UnclearModel."""
    if not has_one_model(body) and (_KEY in body or _ESCAPE in body):
        _check_same(_root_models(body))
    name = fields.get("model")
    if name is not None and not isinstance(name, str):
        raise UnclearModel(f"must be a string, not {_KINDS.get(type(name), 'a number')}")
    if name is None and (place := _misplaced(fields)) is not None:
        raise UnclearModel(f"must be a field at the top level of the body; here it is {place}")
    return _checked(name)


def model_in_query(query: bytes) -> str | None:
    """`?model=`. Raises UnclearModel."""
    return _model_in_query(query) if query else None


@lru_cache(maxsize=1024)
def _model_in_query(query: bytes) -> str | None:
    return model_in_fields(query)


def model_in_fields(text: bytes) -> str | None:
    """The model in a query, or in a URL-encoded form. Raises UnclearModel."""
    pairs = parse_qsl(text.decode("utf-8", "replace"))
    names = [value for name, value in pairs if name == "model"]
    _check_same(names)
    return _checked(names[0]) if names else None


def _checked(name: str | None) -> str | None:
    """The name, if it is not too long. Raises UnclearModel."""
    # Characters first, so that a far too long name is not encoded.
    if name and max(len(name), len(name[:MAX_NAME_BYTES].encode("utf-8", "replace"))) > MAX_NAME_BYTES:
        raise UnclearModel(f"has more than {MAX_NAME_BYTES} bytes, the limit for a name")
    return name


def _shown(value: object) -> str:
    """A value as quoted in a message."""
    if isinstance(value, str):
        return repr(value[:_MAX_SHOWN]) + ("…" if len(value) > _MAX_SHOWN else "")
    return _KINDS.get(type(value), "a number")


_KINDS: dict[type, str] = {list: "an array", dict: "an object", bool: "a boolean", type(None): "null"}


def _check_same(names: Iterable[object]) -> None:
    """Raise UnclearModel where names differ."""
    first, *others = list(names) or [None]
    for other in others:
        if other != first:
            raise UnclearModel(
                f"is given more than once, as {_shown(first)} and as {_shown(other)}; name one"
            )


def _root_models(body: bytes) -> list[object]:
    """The values of all keys `model` of the outermost object."""
    try:
        # Objects become lists of pairs; numbers stay text, as Python limits their digits.
        pairs = json.loads(body, object_pairs_hook=list, parse_int=str)
    except (ValueError, RecursionError) as error:
        raise UnclearModel(f"can't be determined from the body: {error}") from None
    return [value for key, value in pairs if key == "model"]


def _misplaced(fields: dict[str, Any]) -> str | None:
    """Where a model is named in the wrong place: in another spelling, or nested."""
    for key, value in fields.items():
        if key != "model" and key.casefold() == "model" and isinstance(value, str):
            return f"named {_shown(key)}"
    for key, value in fields.items():
        if _names_model_inside(value):
            return f"inside {_shown(key)}"
    return None


def _names_model_inside(value: object) -> bool:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if isinstance(item.get("model"), str):
                return True
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return False
