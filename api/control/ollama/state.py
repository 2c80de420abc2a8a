"""What Ollama's routes share; on the control application's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from api.control.ollama.fleet_models import FleetModels
from api.control.ollama.listing import Listing
from instance_manager.fleet.facts_reader import FactsReader
from instance_manager.fleet.fleet import Fleet


@dataclass(frozen=True, slots=True)
class OllamaState:
    """`port`: the one besides Berth's own, for Ollama's clients; 0 = none."""

    models: FleetModels
    listing: Listing
    port: int = 0

    @classmethod
    def of(cls, fleet: Fleet, port: int = 0) -> Self:
        facts = FactsReader(fleet.manager.config)
        return cls(FleetModels(fleet, facts), Listing(fleet, facts), port)
