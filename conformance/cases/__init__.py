"""All cases, by subject."""

from __future__ import annotations

from conformance.case import Case
from conformance.cases import (
    batch,
    beams,
    chat,
    completions,
    errors,
    logprobs,
    messages,
    metrics,
    models,
    pooling,
    reasoning,
    responses,
    sampling,
    stops,
    streams,
    structured,
    tokenize,
    tools,
)

_GROUPS = (
    models.group,
    tokenize.group,
    completions.group,
    chat.group,
    batch.group,
    sampling.group,
    beams.group,
    stops.group,
    logprobs.group,
    streams.group,
    structured.group,
    tools.group,
    reasoning.group,
    responses.group,
    messages.group,
    pooling.group,
    errors.group,
    metrics.group,
)


def all_cases() -> list[Case]:
    return [case for group in _GROUPS for case in group.cases]
