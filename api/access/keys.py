"""API keys and their callers: what each may do, with which models, and how often.

Only a key's digest is kept. Knows nothing of paths and headers: api/auth.py does.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from fnmatch import fnmatchcase
from typing import Protocol

from api.http.asgi import Scope
from api.http.errors import ApiError, api_error
from api.http.headers import TENANT
from instance_manager.fleet.profiles import ModelProfile

_SCOPE_KEY = "berth.caller"


class Access(IntEnum):
    """A caller's permission, or the one a path requires; higher includes lower."""

    OPEN = 0  # health checks
    INFERENCE = 1  # send requests to engines
    ADMIN = 2  # start and stop them, read logs


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key from the settings. `models`: names and patterns, None = all; `rate_per_s`: None = unlimited."""

    secret: str
    access: Access
    name: str = ""
    models: tuple[str, ...] | None = None
    rate_per_s: float | None = None
    burst: int = 1

    def __repr__(self) -> str:
        return f"<ApiKey {self.name or key_id_of(self.secret)}>"


class NamedModel(Protocol):
    """A model of this node or of another one."""

    @property
    def name(self) -> str: ...
    @property
    def profile(self) -> ModelProfile | None: ...


class Rate:
    """A token bucket: `burst` requests at once, `per_s` on average."""

    __slots__ = ("_burst", "_clock", "_per_s", "_seen", "_tokens")

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._seen = clock()

    @property
    def limits(self) -> tuple[float, int]:
        """Per second, and at once."""
        return self._per_s, self._burst

    def take_token(self) -> float:
        """Take a token: 0 if there was one, else the seconds until there is one (and none is taken)."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._seen) * self._per_s)
        self._seen = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._per_s


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request. `key_id` is for logs and counts: it identifies a key without revealing it."""

    key_id: str
    access: Access
    models: tuple[str, ...] | None = None
    rate: Rate | None = None
    tenant: str = ""  # owner of what it creates; empty if tenants are not distinguished
    cache_owner: str = ""  # owner of cached responses and prefixes; empty if keys share them
    tenant_line: bytes = b""  # the header with the tenant, for our own engine

    def may_use(self, names: Iterable[str]) -> bool:
        """Whether a model with these names is among the allowed ones."""
        if self.models is None:
            return True
        return any(fnmatchcase(name, pattern) for name in names for pattern in self.models)


LOCAL = Caller("local", Access.ADMIN)  # on this machine, without a key
PAGE = Caller("page", Access.INFERENCE)  # the same, in a browser for a page of another origin
ANONYMOUS = Caller("none", Access.OPEN)


class KeyRing:
    """All API keys."""

    def __init__(
        self, keys: Iterable[ApiKey], earlier: KeyRing | None = None, *, shares_caches: bool = False
    ) -> None:
        """`earlier`: keys with unchanged limits keep the state of their rate limit from there.

        `shares_caches`: whether keys share cached responses and prefixes.
        """
        rates = {} if earlier is None else {digest: caller.rate for digest, caller in earlier._callers}
        # A key listed for requests and for admins is an admin's: the last match is found.
        ordered = sorted(keys, key=lambda key: key.access)
        digests = [(_digest(key.secret.encode()), key) for key in ordered]
        self._callers: list[tuple[bytes, Caller]] = [
            (digest, _caller(key, rates.get(digest), shares_caches=shares_caches)) for digest, key in digests
        ]
        self.has_admin = any(caller.access is Access.ADMIN for _, caller in self._callers)
        self.is_empty = not self._callers

    def find(self, key: bytes) -> Caller:
        """The caller with this key; ANONYMOUS if it is unknown."""
        found = ANONYMOUS
        if key and self._callers:
            digest = _digest(key)
            for known, caller in self._callers:
                # Compare with every key, each in constant time: the duration reveals nothing.
                if hmac.compare_digest(digest, known):
                    found = caller
        return found


def key_id_of(secret: str) -> str:
    """A short name in logs for a key without a name: the beginning of its hash."""
    return hashlib.sha256(secret.encode()).hexdigest()[:8]


def set_caller(scope: Scope, caller: Caller) -> None:
    """Record the caller of a request in its scope."""
    scope[_SCOPE_KEY] = caller


def caller_of(scope: Scope) -> Caller:
    """The caller of a request; ANONYMOUS for a path that is open to all."""
    caller: Caller = scope.get(_SCOPE_KEY, ANONYMOUS)
    return caller


def is_admin(scope: Scope) -> bool:
    """Whether the caller may read engines' logs."""
    return caller_of(scope).access is Access.ADMIN


def is_limited_to_models(scope: Scope) -> bool:
    """Whether the caller's key has a list of models."""
    return caller_of(scope).models is not None


def may_use(scope: Scope, model: NamedModel) -> bool:
    """Whether the request's key may use this model, by its name or one of its aliases."""
    caller = caller_of(scope)
    return caller.models is None or caller.may_use(names_of(model))


def may_see(scope: Scope, model: NamedModel) -> bool:
    """Whether lists of what runs show it: an unlisted model is shown to admins alone."""
    is_unlisted = model.profile is not None and model.profile.unlisted
    return may_use(scope, model) and (is_admin(scope) or not is_unlisted)


def model_refusal(scope: Scope, model: NamedModel) -> ApiError | None:
    """The error for a model that the request's key may not use, else None."""
    return None if may_use(scope, model) else model_not_allowed(model.name)


def names_of(model: NamedModel) -> tuple[str, ...]:
    return (model.name, *(model.profile.other_names if model.profile is not None else ()))


def model_not_allowed(what: str) -> ApiError:
    message = f"this API key may not use {what!r}; GET /v1/models lists the models it may use"
    return api_error(403, message, "permission_error", param="model", code="model_not_allowed")


def rate_limited(wait_s: float) -> ApiError:
    message = f"rate limit exceeded for this API key; retry in {math.ceil(wait_s)} s"
    return api_error(
        429, message, "rate_limit_error", code="rate_limit_exceeded", retry_after_s=math.ceil(wait_s)
    )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def tenant_of(key: ApiKey) -> str:
    """A key's tenant id, the same on every node and after restarts; a named key may be replaced by another.

    It reveals neither the key nor its name.
    """
    identity = b"name " + key.name.encode() if key.name else b"key " + _digest(key.secret.encode())
    return hashlib.blake2b(identity, digest_size=16, person=b"berth tenant").hexdigest()


def _tenant_line(tenant: str, access: Access, *, shares_caches: bool) -> bytes:
    flags = (";admin" if access is Access.ADMIN else "") + (";shared" if shares_caches else "")
    return TENANT + f": {tenant}{flags}\r\n".encode()


def _caller(key: ApiKey, used: Rate | None, *, shares_caches: bool) -> Caller:
    if key.rate_per_s is None:
        rate = None
    elif used is not None and used.limits == (key.rate_per_s, key.burst):
        rate = used
    else:
        rate = Rate(key.rate_per_s, key.burst)
    tenant = tenant_of(key)
    return Caller(
        key.name or key_id_of(key.secret),
        key.access,
        key.models,
        rate,
        tenant,
        "" if shares_caches else tenant,
        _tenant_line(tenant, key.access, shares_caches=shares_caches),
    )
