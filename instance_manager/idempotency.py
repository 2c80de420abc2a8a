"""Which instance a client has created under which key: asked again, it gets the same one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from instance_manager.errors import IdempotencyKeyReused
from instance_manager.types import InstanceSpec

_KEPT_S = 24 * 3600.0
_MAX_KEPT = 10_000


class IdempotencyKeys:
    """Kept for a day, the latest 10,000 of them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, InstanceSpec, str]] = OrderedDict()

    def find(self, key: str, spec: InstanceSpec) -> str | None:
        """The instance that the key has created. Raises IdempotencyKeyReused for another request."""
        self._forget_old()
        if key not in self._known:
            return None
        _, known, instance_id = self._known[key]
        if known != spec:
            raise IdempotencyKeyReused(
                f"the Idempotency-Key {key[:100]!r} has created instance {instance_id!r} from another "
                "request; take a new key for a new request"
            )
        return instance_id

    def remember(self, key: str, spec: InstanceSpec, instance_id: str) -> None:
        self._known[key] = (self._clock(), spec, instance_id)

    def _forget_old(self) -> None:
        oldest = self._clock() - _KEPT_S
        while self._known and (len(self._known) > _MAX_KEPT or next(iter(self._known.values()))[0] < oldest):
            self._known.popitem(last=False)
