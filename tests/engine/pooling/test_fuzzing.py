"""Nothing that the description of a pooling server allows or forbids breaks it."""

from __future__ import annotations

import pytest
from schemathesis import GenerationMode

from engine.server.app.openapi import ServerKind
from tests.engine.server.fuzzing import IS_LONG, fuzz, questions
from tests.engine.server.serving import Running

_ALIASES = ("post_v1_rerank", "post_v2_rerank", "post_score")  # of operations that `make test` tries


@pytest.mark.timeout(36000 if IS_LONG else 600)
@pytest.mark.parametrize(
    ("operation_id", "mode"),
    [
        pytest.param(*one, marks=pytest.mark.exhaustive) if one[0] in _ALIASES else one
        for one in questions(ServerKind.POOLING, but=ServerKind.GENERATING)
    ],
    ids=lambda one: getattr(one, "value", one),
)
def test_no_request_that_the_description_allows_breaks_the_server(
    minilm_server: Running, operation_id: str, mode: GenerationMode
) -> None:
    fuzz(minilm_server, ServerKind.POOLING, operation_id, mode)
