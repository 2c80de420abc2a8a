"""The JSON file of engine parameters that VLLM_CONFIG names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from configs.bounded_file import read_bounded
from configs.settings_error import SettingsError


def read_parameters(path: Path) -> dict[str, Any]:
    """The engine parameters in a JSON file: one object with `snake_case` keys. Raises SettingsError."""
    try:
        parameters = json.loads(read_bounded(path))
    except OSError as error:
        raise SettingsError(f"VLLM_CONFIG={path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"VLLM_CONFIG={path}: not valid JSON: {error}") from None
    if not isinstance(parameters, dict):
        raise SettingsError(f"VLLM_CONFIG={path}: must contain one JSON object of parameters")
    return parameters
