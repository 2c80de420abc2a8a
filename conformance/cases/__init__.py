"""All cases, by subject."""

from __future__ import annotations

from conformance.case import Case
from conformance.cases import (
    chat,
    completions,
    errors,
    logprobs,
    models,
    sampling,
    stops,
    streams,
    tokenize,
)

_GROUPS = (
    models.group,
    tokenize.group,
    completions.group,
    chat.group,
    sampling.group,
    stops.group,
    logprobs.group,
    streams.group,
    errors.group,
)


def all_cases() -> list[Case]:
    return [case for group in _GROUPS for case in group.cases]
