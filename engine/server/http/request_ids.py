"""The client's id of a request, and the engine's ids of its sequences.

The engine's ids begin with the client's, so that a client can abort its request by the only id it knows.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from contextvars import ContextVar
from itertools import count

from starlette.requests import Request

from engine.server.http.tenants import Tenant, current_tenant

# Set by the middleware, for everything done on behalf of one HTTP request: its id, and whether that is final.
_current: ContextVar[tuple[str, bool]] = ContextVar("request_id", default=("", False))

# A unique name that no client can choose: the group among which the engine's steps are shared fairly.
_group: ContextVar[str] = ContextVar("group", default="")
_numbers = count(1)

# The response's id if it does not contain the request's: stored responses need ids that cannot be guessed.
_response_id: ContextVar[str] = ContextVar("answer", default="")

_SEPARATOR = ":"
# PrefixCache of ids in responses: clients can send the id as they received it.
_PREFIX = re.compile(r"^(?:cmpl|chatcmpl|resp|msg)[-_]")


def set_request_id(request_id: str, *, is_final: bool) -> None:
    """Set the id of the current request for this task and its children; an id from a header is final."""
    _current.set((request_id, is_final))
    _response_id.set("")
    _group.set(f"request {next(_numbers)}")


def current_group() -> str:
    """The engine's name for all sequences of the current request."""
    return _group.get()


def choose_request_id(requested: str | None) -> str:
    """The id in the response: the header's, else the body's, else the generated one."""
    request_id, is_final = _current.get()
    if requested is not None and not is_final:
        request_id = requested
        _current.set((requested, False))
    return request_id


def new_response_id() -> str:
    """A random id for the current request's response. The request can be aborted by it as well."""
    response_id = uuid.uuid4().hex
    _response_id.set(response_id)
    return response_id


def new_sequence_id() -> str:
    """An engine id for a new sequence of the current request; unique even if the client's id is not."""
    request_id, _ = _current.get()
    return _SEPARATOR.join((request_id, current_tenant().name, _response_id.get(), uuid.uuid4().hex))


def sequence_ids_of(requested: Iterable[str], running: Iterable[str], tenant: Tenant) -> list[str]:
    """The running sequences of the requested ids that the tenant is allowed to abort."""
    names = set(requested)
    names |= {_PREFIX.sub("", name) for name in names}
    names.discard("")
    found = []
    for sequence_id in running:
        request_id, owner, response_id, _ = sequence_id.rsplit(_SEPARATOR, 3)
        if (request_id in names or response_id in names) and (tenant.is_admin or owner == tenant.name):
            found.append(sequence_id)
    return found


def request_id_of(request: Request, requested: str | None) -> str:
    """The id in the response, as in `choose_request_id`."""
    return choose_request_id(requested)
