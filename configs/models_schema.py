"""`python -m configs.models_schema` writes models.schema.json, with which editors check models.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from configs.model_entry import ModelDefaults, ModelEntry

SCHEMA_FILE = Path(__file__).with_name("models.schema.json")


def models_schema() -> dict[str, Any]:
    """The JSON schema of models.yaml."""
    entry = ModelEntry.model_json_schema(ref_template="#/$defs/{model}")
    defaults = ModelDefaults.model_json_schema(ref_template="#/$defs/{model}")
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


def main() -> None:
    SCHEMA_FILE.write_text(json.dumps(models_schema(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
