"""State that outlives a Berth process: instance records, events, ports, idempotency keys and usage.

One interface (`StateStore`) and three implementations: memory, SQLite, Redis. `open_store` picks by
STATE_URL. Knows nothing of processes, engines or HTTP; it stores what it is given and checks versions.
"""

from instance_manager.state.stores.base import StateStore
from instance_manager.state.stores.open import DEFAULT_URL, check_url, open_store, owner_id
from instance_manager.state.stores.records import (
    Change,
    ChangeKind,
    Claim,
    Commit,
    InstanceRecord,
    NewEvent,
    Owner,
    OwnerLease,
    PortHold,
    Usage,
    Write,
)

__all__ = [
    "DEFAULT_URL",
    "Change",
    "ChangeKind",
    "Claim",
    "Commit",
    "InstanceRecord",
    "NewEvent",
    "Owner",
    "OwnerLease",
    "PortHold",
    "StateStore",
    "Usage",
    "Write",
    "check_url",
    "open_store",
    "owner_id",
]
