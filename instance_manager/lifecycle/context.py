"""What all supervisors share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import httpx

from instance_manager.config import ManagerConfig
from instance_manager.lifecycle.ports import PortRange
from instance_manager.state.keeper import StateKeeper


@dataclass(frozen=True, slots=True)
class SupervisorContext:
    """Created by the manager, valid while it runs."""

    config: ManagerConfig
    ports: PortRange
    client: httpx.AsyncClient
    keeper: StateKeeper
    new_token: Callable[[], str]  # for one engine process; names its owner
