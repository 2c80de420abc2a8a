"""Dependencies of the routes: the objects that app.py has put on the application's state."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from api.control.model_events import ModelEvents
from instance_manager.config import ManagerConfig
from instance_manager.fleet.facts_reader import FactsReader
from instance_manager.fleet.fleet import Fleet
from instance_manager.hub.downloads import Downloads
from instance_manager.hub.pull import Pulls
from instance_manager.manager import InstanceManager


def _manager(request: Request) -> InstanceManager:
    manager: InstanceManager = request.app.state.manager
    return manager


def _config(request: Request) -> ManagerConfig:
    config: ManagerConfig = request.app.state.manager.config
    return config


def _fleet(request: Request) -> Fleet:
    fleet: Fleet = request.app.state.fleet
    return fleet


def _facts(request: Request) -> FactsReader:
    facts: FactsReader = request.app.state.facts
    return facts


def _pulls(request: Request) -> Pulls:
    pulls: Pulls = request.app.state.pulls
    return pulls


def _downloads(request: Request) -> Downloads:
    downloads: Downloads = request.app.state.downloads
    return downloads


def _model_events(request: Request) -> ModelEvents:
    events: ModelEvents = request.app.state.model_events
    return events


Manager = Annotated[InstanceManager, Depends(_manager)]
Config = Annotated[ManagerConfig, Depends(_config)]
Models = Annotated[Fleet, Depends(_fleet)]
Facts = Annotated[FactsReader, Depends(_facts)]
AllPulls = Annotated[Pulls, Depends(_pulls)]
AllDownloads = Annotated[Downloads, Depends(_downloads)]
Events = Annotated[ModelEvents, Depends(_model_events)]
