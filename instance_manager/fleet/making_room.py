"""An eviction that takes long, as the plans made meanwhile count it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from instance_manager.memory.devices import Device
from instance_manager.memory.victims import EvictionAction, EvictionStep, Resident


@dataclass(frozen=True, slots=True)
class MakingRoom:
    """An eviction under way, whose victims' requests may take long to end."""

    model_name: str
    need: Mapping[Device, int]
    steps: tuple[EvictionStep, ...]

    def as_leaving(self, resident: Resident) -> Resident:
        """A victim as the instance that it will be soon."""
        action = next((one.action for one in self.steps if one.instance_id == resident.instance_id), None)
        if action is None or resident.leaving is not None:
            return resident
        is_known = action is EvictionAction.STOP or action in resident.held_asleep
        return replace(resident, leaving=action) if is_known else resident

    @property
    def as_resident(self) -> Resident:
        """What the model will hold, and nothing yet: others may start only beside it."""
        return Resident(
            instance_id=f"soon {self.model_name}",
            model_name=self.model_name,
            level=0,
            held={},
            held_asleep={EvictionAction.SLEEP1: self.need},
            in_flight=0,
            queued=0,
            pinned=False,
            last_used=0.0,
            resident_since=0.0,
            leaving=EvictionAction.SLEEP1,
        )
