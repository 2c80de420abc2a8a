"""What all of a GGUF file's header says of a model of the catalog."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instance_manager.backends.model_paths import find_model
from instance_manager.config import ManagerConfig
from instance_manager.errors import ModelNotFound
from instance_manager.fleet.profiles import ModelProfile
from instance_manager.gguf.description import describe
from instance_manager.gguf.folders import model_at
from instance_manager.process.environment import child_environment
from instance_manager.process.hub_cache import hub_cache


def full_description(profile: ModelProfile | None, config: ManagerConfig) -> Mapping[str, Any] | None:
    """The profile's description, which is of a file's beginning, completed. Blocks: reads a file."""
    if profile is None or profile.description is None:
        return None
    cache = hub_cache(child_environment(os.environ, config.engine_env, profile.env))
    try:
        found = model_at(Path(find_model(profile.model, config.model_dirs, cache)))
    except ModelNotFound:
        found = None
    return (None if found is None else describe(found, whole=True)) or profile.description
