"""Ids: the client's name of a request, and the engine's ids of the sequences that it became.

The engine's ids begin with the client's, so that a client can end its request by the only name it knows.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from contextvars import ContextVar
from itertools import count

from starlette.requests import Request

from engine.server.http.tenants import Tenant, current_tenant

# Set at the gate for all that is done on behalf of one HTTP request: its id, and whether that is final.
_current: ContextVar[tuple[str, bool]] = ContextVar("request_id", default=("", False))

# A name of its own for each, which no client can choose: what shares the engine's steps.
_group: ContextVar[str] = ContextVar("group", default="")
_numbers = count(1)

# The id of the answer where that doesn't hold the request's: of what is kept, which nobody may guess.
_answer: ContextVar[str] = ContextVar("answer", default="")

_SEPARATOR = ":"
# What answers put before it: an id may be given as it stood in the answer.
_PREFIX = re.compile(r"^(?:cmpl|chatcmpl|resp|msg)[-_]")


def set_request_id(request_id: str, *, is_final: bool) -> None:
    """Name the request that this task, and those it will start, work for; an id from a header is final."""
    _current.set((request_id, is_final))
    _answer.set("")
    _group.set(f"request {next(_numbers)}")


def current_group() -> str:
    """The engine's name for all sequences of the current request."""
    return _group.get()


def choose_request_id(asked: str | None) -> str:
    """The id that the answer carries: the header's, else the body's (`asked`), else the gate's own."""
    request_id, is_final = _current.get()
    if asked is not None and not is_final:
        request_id = asked
        _current.set((asked, False))
    return request_id


def new_answer_id() -> str:
    """A random id for the current request's answer, by which the request can be ended, too."""
    answer = uuid.uuid4().hex
    _answer.set(answer)
    return answer


def new_sequence_id() -> str:
    """An engine id for one more sequence of the current request; unique even if the client's isn't."""
    request_id, _ = _current.get()
    return _SEPARATOR.join((request_id, current_tenant().name, _answer.get(), uuid.uuid4().hex))


def sequence_ids_of(asked: Iterable[str], running: Iterable[str], tenant: Tenant) -> list[str]:
    """Of the engine's ids, those that belong to the requests asked for and are the tenant's to end."""
    names = set(asked)
    names |= {_PREFIX.sub("", name) for name in names}
    names.discard("")
    found = []
    for one in running:
        request_id, owner, answer, _ = one.rsplit(_SEPARATOR, 3)
        if (request_id in names or answer in names) and (tenant.is_admin or owner == tenant.name):
            found.append(one)
    return found


def request_id_of(request: Request, asked: str | None) -> str:
    """The id that the answer carries: the header's, else the body's, else the one made at the gate."""
    return choose_request_id(asked)
