"""Where a family that runs can't do all: words of the refusal, by architecture, for docs/models.md."""

from __future__ import annotations

from collections.abc import Mapping

NOT_EMBEDDED: Mapping[str, str] = {}
NOT_DIVIDED: Mapping[str, str] = {}
