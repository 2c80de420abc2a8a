"""`python -m docs.models_schema` writes configs/models.schema.json, with which editors check models.yaml."""

from __future__ import annotations

import json

from composition.policies import engine_kinds
from configs.models_schema import SCHEMA_FILE, models_schema


def main() -> None:
    SCHEMA_FILE.write_text(json.dumps(models_schema(engine_kinds()), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
