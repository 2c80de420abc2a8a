"""Dependencies of the routes: the objects that app.py has put on the application's state."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from instance_manager.config import ManagerConfig
from instance_manager.manager import InstanceManager


def _manager(request: Request) -> InstanceManager:
    manager: InstanceManager = request.app.state.manager
    return manager


def _config(request: Request) -> ManagerConfig:
    config: ManagerConfig = request.app.state.manager.config
    return config


Manager = Annotated[InstanceManager, Depends(_manager)]
Config = Annotated[ManagerConfig, Depends(_config)]
