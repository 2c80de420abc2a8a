"""Ollama's names of models: `name:latest` is `name`, and a hub may stand in front. Pure."""

from __future__ import annotations

from collections.abc import Iterator

_LATEST = ":latest"
_HUBS = ("hf.co/", "huggingface.co/")


def candidates(name: str) -> Iterator[str]:
    """The names under which Berth may know a model that a client calls `name`, the most literal first."""
    yield name
    for hub in _HUBS:
        if name.startswith(hub):
            name = name.removeprefix(hub)
            yield name
    if name.endswith(_LATEST):
        yield name.removesuffix(_LATEST)


def plain(name: str) -> str:
    """The name without a hub and without `:latest`."""
    *_, last = candidates(name)
    return last


def tagged(name: str) -> str:
    """The name as Ollama lists it: always with a tag."""
    return name if ":" in name.rpartition("/")[2] else name + _LATEST
