"""A conversation: its messages and settings, and what a line typed means. Knows no terminal, no HTTP."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cli.errors import wrong_use
from cli.values import json_or_text

HELP = """\
/system TEXT     say how it is to answer; without TEXT: say nothing
/set KEY VALUE   a field of the request, as in /set temperature 0.2; without VALUE: as before
/set             show what is set
/clear           forget what was said
/exit            leave, as Ctrl-D does
\"\"\"              begins and ends a text of several lines
Ctrl-C           stops an answer"""


class Verb(StrEnum):
    """What can be typed after a slash."""

    EXIT = "exit"
    CLEAR = "clear"
    SYSTEM = "system"
    SET = "set"
    HELP = "help"


@dataclass(slots=True)
class Conversation:
    """What has been said, and how it is asked for; `fields` are fields of the request as given."""

    model: str
    system: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)

    def body(self, *, stream: bool) -> dict[str, Any]:
        """The request for the next answer."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {"model": self.model, "messages": [*system, *self.messages], "stream": stream, **self.fields}

    def ask(self, prompt: str) -> None:
        self.messages.append({"role": "user", "content": prompt})

    def answered(self, text: str) -> None:
        """The answer, or as much as came; a question without any is taken back."""
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()

    def obey(self, verb: Verb, rest: str) -> str:
        """Do what a command says (all but /exit); what to answer to it. Raises CliError."""
        if verb is Verb.CLEAR:
            self.messages.clear()
            return "forgotten"
        if verb is Verb.SYSTEM:
            self.system = rest or None
            return "so be it" if rest else "no system message"
        if verb is Verb.SET:
            return self._set(rest)
        return HELP

    def _set(self, rest: str) -> str:
        key, _, value = rest.partition(" ")
        if key in ("model", "messages", "stream"):
            raise wrong_use(f"{key} can't be set", "/help lists what can be done")
        if value.strip():
            self.fields[key] = json_or_text(value.strip())
        else:
            self.fields.pop(key, None)
        return (
            " ".join(f"{name}={json.dumps(given)}" for name, given in self.fields.items()) or "nothing is set"
        )


def command_in(line: str) -> tuple[Verb, str] | None:
    """The command that a line is, with its text; None: it is something to say. Raises CliError."""
    if not line.startswith("/"):
        return None
    word, _, rest = line[1:].partition(" ")
    try:
        return Verb("exit" if word in ("bye", "quit") else word), rest.strip()
    except ValueError:
        raise wrong_use(f"/{word} is no command", "/help lists them") from None
