"""Early remarks for the operator, one line each: at the start, at a reload and with `--check`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from configs.one_line import one_line


@dataclass(frozen=True, slots=True)
class Remark:
    """A line for people. A mistake will make something fail later; other remarks may describe intentions."""

    text: str
    is_mistake: bool = False


@dataclass(slots=True)
class Report:
    """The result of a check."""

    mistakes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    num_models: int = 0

    def add(self, remarks: Iterable[Remark]) -> None:
        for remark in remarks:
            (self.mistakes if remark.is_mistake else self.warnings).append(one_line(remark.text))

    @property
    def exit_status(self) -> int:
        return 1 if self.mistakes else 0

    def as_json(self) -> str:
        found = {
            "ok": not self.mistakes,
            "mistakes": self.mistakes,
            "warnings": self.warnings,
            "models": self.num_models,
        }
        return json.dumps(found, indent=2, ensure_ascii=False)

    def as_text(self) -> str:
        lines = [*(f"wrong: {line}" for line in self.mistakes), *(f"note:  {line}" for line in self.warnings)]
        verdict = f"{_counted(len(self.mistakes), 'mistake')}; {_counted(self.num_models, 'model')}"
        return "\n".join([*lines, verdict if self.mistakes else f"all is well: {verdict}"])


def _counted(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
