"""What a store refuses. A caller outlives all of these: its own picture of the world stays as it was."""

from __future__ import annotations

from instance_manager.errors import ManagerError


class StoreError(ManagerError):
    """Base of the store's errors."""

    code = "store_error"


class StoreUnavailable(StoreError):
    """The state can't be read or written now (disk full, read-only, Redis away). The write did not happen."""

    code = "store_unavailable"


class StoreInUse(StoreError):
    """Another live Berth works with this state directory or under this owner's name."""

    code = "store_in_use"


class InvalidStateUrl(StoreError):
    """STATE_URL names no store we know."""

    code = "invalid_state_url"


class StateNotOurs(InvalidStateUrl):
    """STATE_URL names a file that no Berth has made; nothing is done to it."""

    code = "state_not_ours"


class Conflict(StoreError):
    """The record is not at the version that the writer expected. `found` is what it is at; 0 = not there."""

    code = "version_conflict"

    def __init__(self, instance_id: str, expected: int, found: int) -> None:
        super().__init__(
            f"record {instance_id!r} is at version {found}, not {expected}: somebody else wrote it; "
            "read it again and decide anew"
        )
        self.instance_id = instance_id
        self.expected = expected
        self.found = found


class PortHeld(StoreError):
    """The port is kept for another instance of the same machine; `holder` is its id."""

    code = "port_held"

    def __init__(self, node: str, port: int, holder: str) -> None:
        super().__init__(f"port {port} of {node!r} is held by instance {holder!r}")
        self.holder = holder


class LeaseLost(StoreError):
    """Another process has taken over this owner's name; nothing may be written under it any more."""

    code = "lease_lost"
