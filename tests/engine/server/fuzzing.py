"""Requests that a server's own description allows or forbids, made by schemathesis."""

from __future__ import annotations

import os
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from engine.server.app.openapi import ServerKind, build_document
from tests.engine.server.serving import Running

# More of them: `make fuzz`.
NUM_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
IS_LONG = NUM_EXAMPLES > 100
_SERVERS_OWN_ERRORS = range(500, 600)


def questions(kind: ServerKind, *, but: ServerKind | None = None) -> list[tuple[str, GenerationMode]]:
    """Operations, with what fits their description; and with what doesn't, where a body can be wrong."""
    ignored = build_document(but)["paths"] if but is not None else {}
    found = []
    for path, methods in build_document(kind)["paths"].items():
        for one in methods.values() if path not in ignored else ():
            found.append((one["operationId"], GenerationMode.POSITIVE))
            if "requestBody" in one:
                found.append((one["operationId"], GenerationMode.NEGATIVE))
    return found


def fuzz(server: Running, kind: ServerKind, operation_id: str, mode: GenerationMode) -> None:
    """Ask many things of one operation: none may be the server's own error."""
    schema = schemathesis.openapi.from_dict(build_document(kind))
    schema.config.update(base_url=server.url)
    operation = schema.find_operation_by_id(operation_id)

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=not IS_LONG,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        response = case.call()
        assert response.status_code not in _SERVERS_OWN_ERRORS, response.text

    ask()
