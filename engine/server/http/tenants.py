"""Whose request it is: what one tenant has made no other finds, and none learns what others have asked.

A tenant is an API key. Berth, which alone knows the key of an engine that it has started, says in a header
for which of its own keys it asks. Where no keys are asked for, all are one tenant.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import blake2b

TENANT_HEADER = "x-berth-tenant"
"""`NAME`, and then, each after a semicolon, `admin` and `shared`, where they hold."""

_SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Tenant:
    name: str  # without colons
    is_admin: bool = False  # may end everybody's requests
    shares_cache: bool = False  # finds prefixes that others have sent, as they find its own


DEFAULT_TENANT = Tenant("", is_admin=True)

# Set at the gate for all that is done on behalf of one HTTP request.
_current: ContextVar[Tenant] = ContextVar("tenant", default=DEFAULT_TENANT)


def set_tenant(tenant: Tenant) -> None:
    """Say for whom this task works, and those it will start."""
    _current.set(tenant)


def current_tenant() -> Tenant:
    return _current.get()


def tenant_of_key(key: bytes) -> Tenant:
    return Tenant(blake2b(key, digest_size=16, person=b"tenant").hexdigest())


def tenant_of_header(value: str) -> Tenant:
    """Whom Berth asks for; without a name itself, or anybody where it has no keys."""
    name, *marks = value.split(";")
    return Tenant(name, "admin" in marks, "shared" in marks) if name else DEFAULT_TENANT


def cache_salt(asked: str | None) -> bytes:
    """What goes before the first key of a prompt's blocks: the current tenant's, and the client's own.

    Equal salts share prefixes. Empty where neither is told apart.
    """
    tenant = current_tenant()
    owner = "" if tenant.shares_cache else tenant.name
    if not owner and asked is None:
        return b""
    salt = f"{owner}:{asked or ''}".encode("utf-8", "surrogatepass")
    return blake2b(salt, digest_size=_SALT_BYTES, person=b"cache salt").digest()
