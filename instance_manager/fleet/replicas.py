"""Which models an instance is a replica of. Looks at folders alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instance_manager.backends.model_paths import find_model
from instance_manager.errors import ModelNotFound
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.lifecycle.instance import Instance


def models_of(instance: Instance) -> tuple[str, ...]:
    """By name: its profile, or for one that was created by hand all that its engine answers to."""
    return instance.names if instance.spec.profile is None else (instance.spec.profile,)


def is_replica_of(instance: Instance, profile: ModelProfile, model_dirs: Sequence[Path]) -> bool:
    """Whether an instance that has the profile's name is that model, and not another that is called so."""
    if instance.spec.profile is not None:
        return instance.spec.profile == profile.name
    if instance.model_name in (profile.name, profile.model) and "command" in (
        profile.engine,
        instance.spec.engine,
    ):
        return True  # a command's model is what it is called
    try:
        return find_model(instance.model_name, model_dirs) == find_model(profile.model, model_dirs)
    except ModelNotFound:
        return instance.model_name == profile.model
