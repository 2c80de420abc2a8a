"""Keys, and the callers who hold them: what each may do, for which models, and how often.

A key is kept as its digest alone. Knows nothing of paths and headers: api/auth.py does.
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

from api.http.asgi import Scope
from api.http.errors import ApiError, api_error
from api.http.headers import TENANT
from instance_manager.fleet.models import Model

_SCOPE_KEY = "berth.caller"


class Access(IntEnum):
    """What a caller may do, or a path requires; higher includes lower."""

    OPEN = 0  # is Berth alive
    INFERENCE = 1  # send requests to engines
    ADMIN = 2  # start and stop them, read logs


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the settings have it. `models`: names and patterns; there and for `rate_per_s`, None = all."""

    secret: str
    access: Access
    name: str = ""
    models: tuple[str, ...] | None = None
    rate_per_s: float | None = None
    burst: int = 1

    def __repr__(self) -> str:
        return f"<ApiKey {self.name or key_id_of(self.secret)}>"


class Rate:
    """A token bucket: `burst` requests at once, `per_s` of them in the long run."""

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

    def take(self) -> float:
        """0 for a request that may go on; else nothing is taken, and in so many seconds one may."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._seen) * self._per_s)
        self._seen = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._per_s


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is. `key_id` is for logs and counts: it names a key and doesn't tell it."""

    key_id: str
    access: Access
    models: tuple[str, ...] | None = None
    rate: Rate | None = None
    tenant: str = ""  # whose is what it makes, unlike others'; empty where nobody is told apart
    cache_owner: str = ""  # whose answers and prefixes are remembered for it; empty where keys share them
    tenant_line: bytes = b""  # the header that says so to an engine of ours

    def may_use(self, names: Iterable[str]) -> bool:
        """Whether a model that goes by these names is among those allowed."""
        if self.models is None:
            return True
        return any(fnmatchcase(name, pattern) for name in names for pattern in self.models)


LOCAL = Caller("local", Access.ADMIN)  # without a key, on this machine
PAGE = Caller("page", Access.INFERENCE)  # the same, by a browser for a page of another origin
ANONYMOUS = Caller("none", Access.OPEN)


class KeyRing:
    """All keys that open Berth."""

    def __init__(
        self, keys: Iterable[ApiKey], earlier: KeyRing | None = None, *, shares_caches: bool = False
    ) -> None:
        """`earlier`: keys that had the same limits there have used what they have used.

        `shares_caches`: whether keys find what is remembered of each other's requests.
        """
        rates = {} if earlier is None else {digest: one.rate for digest, one in earlier._callers}
        # An admin's key that is a user's too is an admin's: the last that fits is found.
        ordered = sorted(keys, key=lambda key: key.access)
        digests = [(_digest(key.secret.encode()), key) for key in ordered]
        self._callers: list[tuple[bytes, Caller]] = [
            (digest, _caller(key, rates.get(digest), shares_caches=shares_caches)) for digest, key in digests
        ]
        self.has_admin = any(caller.access is Access.ADMIN for _, caller in self._callers)
        self.is_empty = not self._callers

    def find(self, key: bytes) -> Caller:
        """Whose key it is; ANONYMOUS for one that isn't known."""
        found = ANONYMOUS
        if key and self._callers:
            digest = _digest(key)
            for known, caller in self._callers:
                # Every key is compared, each in constant time: how long it takes tells nothing.
                if hmac.compare_digest(digest, known):
                    found = caller
        return found


def key_id_of(secret: str) -> str:
    """A key's short name in logs where it has no other: the beginning of its hash."""
    return hashlib.sha256(secret.encode()).hexdigest()[:8]


def set_caller(scope: Scope, caller: Caller) -> None:
    """Note on the request whose it is."""
    scope[_SCOPE_KEY] = caller


def caller_of(scope: Scope) -> Caller:
    """Whose request it is; ANONYMOUS for a path that is open to all."""
    caller: Caller = scope.get(_SCOPE_KEY, ANONYMOUS)
    return caller


def is_admin(scope: Scope) -> bool:
    """Whether the caller may read engines' logs."""
    return caller_of(scope).access is Access.ADMIN


def is_limited_to_models(scope: Scope) -> bool:
    """Whether the caller's key has a list of models."""
    return caller_of(scope).models is not None


def may_use(scope: Scope, model: Model) -> bool:
    """Whether the request's key is good for this model, by its name or one of its aliases."""
    caller = caller_of(scope)
    return caller.models is None or caller.may_use(names_of(model))


def model_refusal(scope: Scope, model: Model) -> ApiError | None:
    """The answer to a request for a model that its key is not good for."""
    return None if may_use(scope, model) else model_not_allowed(model.name)


def names_of(model: Model) -> tuple[str, ...]:
    return (model.name, *(model.profile.other_names if model.profile is not None else ()))


def model_not_allowed(what: str) -> ApiError:
    message = f"this key may not ask for {what!r}; GET /v1/models lists what it may ask for"
    return api_error(403, message, "permission_error", param="model", code="model_not_allowed")


def rate_limited(wait_s: float) -> ApiError:
    message = f"this key has sent as many requests as it may; the next may come in {math.ceil(wait_s)} s"
    return api_error(
        429, message, "rate_limit_error", code="rate_limit_exceeded", retry_after_s=math.ceil(wait_s)
    )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def tenant_of(key: ApiKey) -> str:
    """The same for a key in each Berth, and as long as it is known: a named key may be renewed.

    It tells neither the key nor its name.
    """
    who = b"name " + key.name.encode() if key.name else b"key " + _digest(key.secret.encode())
    return hashlib.blake2b(who, digest_size=16, person=b"berth tenant").hexdigest()


def _tenant_line(tenant: str, access: Access, *, shares_caches: bool) -> bytes:
    marks = (";admin" if access is Access.ADMIN else "") + (";shared" if shares_caches else "")
    return TENANT + f": {tenant}{marks}\r\n".encode()


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
