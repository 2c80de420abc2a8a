"""Loads the protocols: Berth's own, and the plug-ins listed in PROTOCOL_PLUGINS. No others are loaded.

A package with an entry point may have been installed for other reasons, so its code is loaded only if the
setting names it.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from api.protocols.app import OPENAI_ROUTES
from api.protocols.base import ProtocolAdapter, ProtocolRequest
from api.protocols.chat.adapter import ChatProtocol
from api.protocols.generate import GenerateProtocol
from api.protocols.messages.adapter import CountTokensProtocol, MessagesProtocol
from api.protocols.responses.adapter import InputTokensProtocol, ResponsesProtocol
from api.protocols.responses.store import ResponseStore

logger = logging.getLogger("berth.protocols")

ENTRY_POINT_GROUP = "berth.protocols"

BUILT_IN: tuple[type[ProtocolAdapter[Any]], ...] = (GenerateProtocol,)

# First path segments that plug-ins may not use: Berth's own routes, and engines' unversioned paths.
RESERVED = frozenset(
    {
        "", "api", "audio", "chat", "classify", "completions", "dashboard", "detokenize", "docs",
        "embeddings", "events", "favicon.ico", "health", "images", "info", "instances", "invocations",
        "is_sleeping", "load", "logs", "messages", "metrics", "models", "moderations", "openapi.json",
        "ping", "pooling", "props", "proxy", "redoc", "reload", "rerank", "responses", "running", "score",
        "server_info", "sleep", "slots", "static", "tokenize", "tokenizer_info", "unload", "upstream",
        "usage", "v1", "v2", "version", "wake_up", "web",
    }
)  # fmt: skip

_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_ROUTE = re.compile(r"(/[A-Za-z0-9_.~-]+)+")


class PluginError(Exception):
    """A plug-in can't be used; the message says in one line which, why, and what to do."""


def load_protocols(plugins: Iterable[str] = ()) -> tuple[ProtocolAdapter[Any], ...]:
    """The built-in adapters, then those of `plugins`: each `module:Class`, or an entry point's name.

    Of adapters with the same route, the first serves models without a `protocol`. Raises PluginError.
    """
    adapters: dict[str, ProtocolAdapter[Any]] = {kind.name: kind() for kind in BUILT_IN}
    for plugin in plugins:
        adapter = _create(plugin, _find(plugin))
        _check(plugin, adapter)
        if adapter.name in adapters:
            taken = type(adapters[adapter.name])
            raise _error(
                plugin,
                f"the name {adapter.name!r} is already used by {taken.__module__}:{taken.__qualname__}; "
                "choose another one",
            )
        adapters[adapter.name] = adapter
    return tuple(adapters.values())


def dialect_adapters(store: ResponseStore) -> tuple[ProtocolAdapter[Any], ...]:
    """The adapters of APIs under /v1, used only for engines that don't have those themselves."""
    return (
        MessagesProtocol(),
        CountTokensProtocol(),
        ResponsesProtocol(store),
        InputTokensProtocol(store),
        ChatProtocol(),
    )


def _find(plugin: str) -> object:
    module_name, colon, class_name = plugin.partition(":")
    if not colon:
        return _load(plugin, _entry_point(plugin).load)
    if not (module_name and class_name):
        raise _error(plugin, "write module:Class, or the name of an entry point")
    module = _load(plugin, lambda: importlib.import_module(module_name))
    found = getattr(module, class_name, None)
    if found is None:
        raise _error(plugin, f"the module {module_name!r} has no {class_name!r}")
    return found


def _entry_point(name: str) -> EntryPoint:
    found = list(entry_points(group=ENTRY_POINT_GROUP, name=name))
    if not found:
        known = sorted(entry_points(group=ENTRY_POINT_GROUP).names)
        available = f"available: {', '.join(known)}" if known else "there are none"
        raise _error(
            name,
            f"no installed package has an entry point {name!r} in the group {ENTRY_POINT_GROUP} "
            f"({available}); write a class as module:Class",
        )
    if len(found) > 1:
        raise _error(name, "several packages have this entry point; write the class as module:Class")
    return found[0]


def _load(plugin: str, load: Any) -> object:
    try:
        return load()
    except Exception as exc:  # importing third-party code may raise anything; the message names it
        logger.debug("the plug-in %r can't be loaded", plugin, exc_info=True)
        reason = str(exc).splitlines()[0] if str(exc) else "no reason given"
        raise _error(plugin, f"can't be imported: {type(exc).__name__}: {reason}") from exc


def _create(plugin: str, found: object) -> ProtocolAdapter[Any]:
    if not (inspect.isclass(found) and issubclass(found, ProtocolAdapter)):
        raise _error(plugin, "not a subclass of api.protocols.base.ProtocolAdapter")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise _error(plugin, f"define the abstract {missing}")
    created = _load(plugin, found)
    assert isinstance(created, ProtocolAdapter)  # noqa: S101 - narrows the type
    return created


def _check(plugin: str, adapter: ProtocolAdapter[Any]) -> None:
    name, route = getattr(adapter, "name", None), getattr(adapter, "route", None)
    schema = getattr(adapter, "request_schema", None)
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise _error(
            plugin, f"name = {name!r} is invalid; use a-z, 0-9, '_', '.' and '-', beginning with a letter"
        )
    if not (inspect.isclass(schema) and issubclass(schema, ProtocolRequest)):
        raise _error(plugin, f"request_schema = {schema!r} is not a subclass of ProtocolRequest")
    if not (isinstance(route, str) and _ROUTE.fullmatch(route)):
        raise _error(
            plugin, f"route = {route!r} is invalid; use a path such as '/{name}', without a trailing slash"
        )
    if route.split("/")[1] in RESERVED and route not in OPENAI_ROUTES:
        raise _error(
            plugin, f"the route {route!r} is reserved for Berth; choose another one, such as '/{name}'"
        )


def _error(plugin: str, problem: str) -> PluginError:
    return PluginError(f"PROTOCOL_PLUGINS={plugin}: {problem}")
