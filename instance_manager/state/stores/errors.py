"""Errors of the stores. None is fatal to the caller: its in-memory state stays valid."""

from __future__ import annotations

from instance_manager.errors import ManagerError


class StoreError(ManagerError):
    """Base of the stores' errors."""

    code = "store_error"


class StoreUnavailable(StoreError):
    """The state can't be read or written now (disk full, read-only, Redis away). The write did not happen."""

    code = "store_unavailable"


class StoreInUse(StoreError):
    """Another live process uses this state directory or this owner's name."""

    code = "store_in_use"


class InvalidStateUrl(StoreError):
    """STATE_URL doesn't name a supported store."""

    code = "invalid_state_url"


class StateNotOurs(InvalidStateUrl):
    """STATE_URL names a file that Berth didn't create; it is left untouched."""

    code = "state_not_ours"


class Conflict(StoreError):
    """The record isn't at the version that the writer expected. `found`: its version; 0 = not there."""

    code = "version_conflict"

    def __init__(self, instance_id: str, expected: int, found: int) -> None:
        super().__init__(
            f"record {instance_id!r} is at version {found}, not {expected}: another process wrote it; "
            "read it again and retry"
        )
        self.instance_id = instance_id
        self.expected = expected
        self.found = found


class PortHeld(StoreError):
    """The port is reserved for another instance on the same machine; `holder` is its id."""

    code = "port_held"

    def __init__(self, node: str, port: int, holder: str) -> None:
        super().__init__(f"port {port} of {node!r} is held by instance {holder!r}")
        self.holder = holder


class LeaseLost(StoreError):
    """Another process has taken over this owner's name; this one must not write any more."""

    code = "lease_lost"
