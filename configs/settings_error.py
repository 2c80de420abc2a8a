"""Invalid settings, all of them in one error."""

from __future__ import annotations

from configs.one_line import one_line


class SettingsError(Exception):
    """Invalid settings; the message has a line for each, with its name, its value and what is allowed."""

    def __init__(self, *mistakes: str) -> None:
        self.mistakes = tuple(map(one_line, mistakes))
        super().__init__("\n".join(self.mistakes))
