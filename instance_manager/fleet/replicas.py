"""Which models an instance is a replica of. Reads the folders of models only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instance_manager.backends import backend_of
from instance_manager.backends.model_paths import find_model
from instance_manager.errors import ModelNotFound
from instance_manager.fleet.profiles import ModelProfile, ModelSource
from instance_manager.lifecycle.instance import Instance


def models_of(instance: Instance) -> tuple[str, ...]:
    """By name: its profile, or for an instance created by hand all names that its engine serves."""
    return instance.names if instance.spec.profile is None else (instance.spec.profile,)


def is_replica_of(instance: Instance, profile: ModelProfile, model_dirs: Sequence[Path]) -> bool:
    """Whether an instance with the profile's name runs that model, not another one under the same name."""
    if instance.spec.profile is not None:
        return instance.spec.profile == profile.name
    kinds = (backend_of(profile.engine), backend_of(instance.spec.engine))
    if instance.model_name in (profile.name, profile.model) and not all(kind.finds_model for kind in kinds):
        return True  # such a model is identified by its name only
    if profile.source is ModelSource.DISCOVERED and instance.model_name in (profile.name, *profile.aliases):
        return True
    try:
        return find_model(instance.model_name, model_dirs) == find_model(profile.model, model_dirs)
    except ModelNotFound:
        return instance.model_name == profile.model
