"""Tenant isolation: a tenant can neither find what another has stored nor learn what another has requested.

A tenant is an API key. Berth, which alone knows the key of an engine that it started, names the tenant in a
header. Without API keys, all requests belong to one tenant.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import blake2b

TENANT_HEADER = "x-berth-tenant"
"""`NAME`, followed by `;admin` and `;shared` if they apply."""

_SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Tenant:
    name: str  # without colons
    is_admin: bool = False  # can abort the requests of all tenants
    shares_cache: bool = False  # shares cached prefixes with other such tenants


DEFAULT_TENANT = Tenant("", is_admin=True)

# Set by the middleware, for everything done on behalf of one HTTP request.
_current: ContextVar[Tenant] = ContextVar("tenant", default=DEFAULT_TENANT)


def set_tenant(tenant: Tenant) -> None:
    """Set the tenant of this task and its children."""
    _current.set(tenant)


def current_tenant() -> Tenant:
    return _current.get()


def tenant_of_key(key: bytes) -> Tenant:
    return Tenant(blake2b(key, digest_size=16, person=b"tenant").hexdigest())


def tenant_of_header(value: str) -> Tenant:
    """The tenant named by Berth. No name: Berth itself, or any client if Berth has no keys."""
    name, *flags = value.split(";")
    return Tenant(name, "admin" in flags, "shared" in flags) if name else DEFAULT_TENANT


def cache_salt(client_salt: str | None, adapter_key: bytes = b"") -> bytes:
    """The salt of a prompt's block hashes: from the current tenant, the client's `cache_salt`, the adapter.

    Prompts with equal salts share prefixes. Empty if there is none of them.
    """
    tenant = current_tenant()
    owner = "" if tenant.shares_cache else tenant.name
    if not owner and client_salt is None and not adapter_key:
        return b""
    salt = f"{owner}:{client_salt or ''}".encode("utf-8", "surrogatepass")
    person = b"cache salt"
    return blake2b(adapter_key + salt, digest_size=_SALT_BYTES, person=person).digest()
