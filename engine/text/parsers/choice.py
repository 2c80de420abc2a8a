"""Chooses a model's format, of tool calls or of reasoning: by a parser's name, or from the chat template."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFormat:
    names: tuple[str, ...]  # of the parser in the flag that chooses it; vLLM's names
    matches_template: Callable[[str], bool]  # whether a chat template teaches the model this format


F = TypeVar("F", bound=NamedFormat)


def named_format(formats: Sequence[F], name: str) -> F:
    """Raises LookupError, naming the known ones."""
    for form in formats:
        if name in form.names:
            return form
    raise LookupError(", ".join(sorted(known for form in formats for known in form.names)))


def detect_format(formats: Sequence[F], templates: Collection[str]) -> F | None:
    """The format that the first of the templates to match any teaches the model; None if we have none."""
    plain = [template.replace('\\"', '"') for template in templates]
    found = (form for template in plain for form in formats if form.matches_template(template))
    return next(found, None)
