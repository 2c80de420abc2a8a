"""Ollama's names of models: `name:latest` is `name`, and a hub may stand in front. Pure."""

from __future__ import annotations

from collections.abc import Iterator

_LATEST = ":latest"
_HUBS = ("hf.co/", "huggingface.co/")


def candidates(name: str) -> Iterator[str]:
    """The names under which Berth may know a model that a client calls `name`, the most literal first."""
    yield name
    short = _without_hub(name)
    if short != name:
        yield short
    if short.endswith(_LATEST):
        yield short.removesuffix(_LATEST)
        return
    label, colon, tag = short.rpartition(":")
    if colon and tag != tag.upper():  # Berth lists quantisations in capitals; Ollama takes tags in any case
        yield f"{label}:{tag.upper()}"


def plain(name: str) -> str:
    """The name without a hub and without `:latest`."""
    return _without_hub(name).removesuffix(_LATEST)


def _without_hub(name: str) -> str:
    hub = next((one for one in _HUBS if name.startswith(one)), "")
    return name.removeprefix(hub)


def tagged(name: str) -> str:
    """The name as Ollama lists it: always with a tag."""
    return name if ":" in name.rpartition("/")[2] else name + _LATEST
