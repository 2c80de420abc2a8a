"""What outlives a Berth: instance records, their history, ports, idempotency keys and usage.

One interface (`StateStore`), three stores behind it: memory, SQLite, Redis. `open_store` picks by STATE_URL.
Knows nothing of processes, engines or HTTP; it keeps what it is given and guards versions.
"""

from instance_manager.state.stores.base import StateStore
from instance_manager.state.stores.open import DEFAULT_URL, check_url, open_store, owner_id
from instance_manager.state.stores.records import (
    Change,
    ChangeKind,
    Claim,
    Commit,
    InstanceRecord,
    Lease,
    NewEvent,
    Owner,
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
    "Lease",
    "NewEvent",
    "Owner",
    "PortHold",
    "StateStore",
    "Usage",
    "Write",
    "check_url",
    "open_store",
    "owner_id",
]
