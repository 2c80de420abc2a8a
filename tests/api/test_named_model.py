"""The model named by a JSON body or a query: unambiguous, or refused."""

from __future__ import annotations

import json

import pytest

from api.http.named_model import (
    InvalidBody,
    UnclearModel,
    model_in_fields,
    model_in_object,
    model_in_query,
    read_object,
)


def named(body: str) -> str | None:
    raw = body.encode()
    return model_in_object(raw, read_object(raw))


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ('{"model": "a"}', "a"),
        ('{"prompt": "' + "x" * 3_000_000 + '", "model": "a"}', "a"),
        ('{"mod\\u0065l": "a"}', "a"),
        ('{"\\u006Dodel": "\\u0430"}', "а"),
        ('{"model": "a", "tools": [{"model": {"type": "string"}}, {"model": "b"}]}', "a"),
        ('{"model": "a", "model": "a"}', "a"),
        ('{"model": "a", "n": ' + "9" * 4000 + ', "x": {"model": "b"}}', "a"),
        ('{"prompt": "\\"model\\": \\"b\\""}', None),
        ('{"tools": [{"properties": {"model": {"type": "string"}}}]}', None),
        ('{"model": null}', None),
        ("{}", None),
    ],
)
def test_it_is_the_top_level_field_in_any_position(body: str, name: str | None) -> None:
    assert named(body) == name


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"model": "a", "model": "b"}', "more than once, as 'a' and as 'b'"),
        ('{"model": "a", "mod\\u0065l": "b"}', "more than once"),
        ('{"model": "a", "model": null}', "more than once"),
        ('{"model": ["a"]}', "must be a string, not an array"),
        ('{"model": 3}', "must be a string, not a number"),
        ('{"Model": "a"}', "top level of the body; here it is named 'Model'"),
        ('{"body": {"model": "a"}}', "inside 'body'"),
        (json.dumps({"requests": [{"x": [{"model": "a"}]}]}), "inside 'requests'"),
    ],
)
def test_ambiguous_bodies_are_refused(body: str, message: str) -> None:
    with pytest.raises(UnclearModel, match=message):
        named(body)


@pytest.mark.parametrize("body", ["", "{", "[1]", '"model"', '{"model": "a"} {}'])
def test_a_body_that_is_not_an_object_is_refused(body: str) -> None:
    with pytest.raises(InvalidBody):
        read_object(body.encode())


def test_a_query_names_one_model_or_none() -> None:
    assert model_in_query(b"x=1&mod%65l=%D0%B0+b") == "а b"
    assert model_in_query(b"models=a") is None
    assert model_in_query(b"") is None
    assert model_in_fields("model=а".encode()) == "а"
    with pytest.raises(UnclearModel, match="more than once"):
        model_in_query(b"model=a&model=b")
