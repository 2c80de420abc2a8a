"""The JSON schema with which editors check models.yaml; docs/models_schema.py writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.engine_kinds import EngineKinds
from configs.model_entry import ModelDefaults, ModelEntry

SCHEMA_FILE = Path(__file__).with_name("models.schema.json")


def models_schema(kinds: EngineKinds) -> dict[str, Any]:
    """The JSON schema of models.yaml."""
    entry = ModelEntry.model_json_schema(ref_template="#/$defs/{model}")
    defaults = ModelDefaults.model_json_schema(ref_template="#/$defs/{model}")
    for one in (entry, defaults):
        one["properties"]["engine"]["anyOf"][0] = {"enum": list(kinds.for_models), "type": "string"}
    definitions = entry.pop("$defs", {}) | defaults.pop("$defs", {})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Berth's catalog of models",
        "type": ["object", "null"],
        "properties": {
            "defaults": {"$ref": "#/$defs/ModelDefaults"},
            "models": {
                "type": ["object", "null"],
                "additionalProperties": {"anyOf": [{"$ref": "#/$defs/ModelEntry"}, {"type": "null"}]},
            },
        },
        "additionalProperties": False,
        "$defs": definitions | {"ModelEntry": entry, "ModelDefaults": defaults},
    }
