"""Which instance a client created under which idempotency key: a repeated request returns it, for a day."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields

from instance_manager.errors import IdempotencyKeyReused
from instance_manager.state.stores.base import StateStore
from instance_manager.state.stores.records import stored_fields
from instance_manager.types import InstanceSpec

_KEPT_S = 24 * 3600.0


async def claim(store: StateStore, key: str, spec: InstanceSpec, instance_id: str) -> tuple[str, bool]:
    """The instance that the key belongs to (`instance_id` unless it is taken), and whether the claim is new.

    The claim is stored before this returns. Raises IdempotencyKeyReused if the key belongs to a different
    request, and StoreUnavailable.
    """
    fingerprint = fingerprint_of(spec)
    held = await store.claim_key(key, instance_id, fingerprint=fingerprint, ttl_s=_KEPT_S)
    if held.fingerprint != fingerprint:
        raise IdempotencyKeyReused(
            f"this Idempotency-Key was used to create instance {held.instance_id!r} with another request; "
            "use a new key for a new request"
        )
    return held.instance_id, held.is_new


def fingerprint_of(spec: InstanceSpec) -> str:
    """Equal for equal requests only; reveals nothing of their content."""
    compared = {field.name for field in fields(spec) if field.compare}
    content = {name: value for name, value in stored_fields(spec).items() if name in compared}
    text = json.dumps(content, sort_keys=True, default=_plain, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, Sequence) else str(value)
