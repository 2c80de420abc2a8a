"""A conversation: its messages and settings, and what a line typed means. Knows no terminal, no HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cli.errors import wrong_use
from cli.values import json_or_text

HELP = """\
/system TEXT      say how it is to answer; without TEXT: say nothing
/set KEY VALUE    a field of the request, as in /set temperature 0.2; without VALUE: as before
/set              show what is set
/set verbose      tell tokens per second after each answer; /set quiet: don't
/set nowordwrap   let the terminal break lines; /set wordwrap: between words
/set nohistory    forget each answer at once; /set history: remember
/set format json  answer in JSON; /set noformat: in any form
/set nothink      answer without thinking, if the model can; /set think
/show             what is known of the model; /show parameters, /show system
/load MODEL       go on with another model
/clear            forget what was said
/bye              leave, as Ctrl-D does
/?                this help
\"\"\"               begins and ends a text of several lines
Ctrl-C            stops an answer"""


class Verb(StrEnum):
    """What can be typed after a slash."""

    EXIT = "exit"
    CLEAR = "clear"
    SYSTEM = "system"
    SET = "set"
    SHOW = "show"
    LOAD = "load"
    HELP = "help"


_ALSO: Mapping[str, Verb] = {"bye": Verb.EXIT, "quit": Verb.EXIT, "?": Verb.HELP, "model": Verb.LOAD}
_FIELDS: Mapping[str, str] = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}  # Ollama's
_FIXED = frozenset({"model", "messages", "stream", "stream_options"})
_SWITCHES: Mapping[str, tuple[str, bool]] = {
    "verbose": ("verbose", True),
    "quiet": ("verbose", False),
    "wordwrap": ("word_wrap", True),
    "nowordwrap": ("word_wrap", False),
    "history": ("history", True),
    "nohistory": ("history", False),
}


@dataclass(slots=True)
class Conversation:
    """What has been said, and how it is asked for; `fields` are fields of the request as given."""

    model: str
    system: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    verbose: bool = False  # tell how fast it was
    word_wrap: bool = True
    history: bool = True
    messages: list[dict[str, str]] = field(default_factory=list)

    def body(self, *, stream: bool) -> dict[str, Any]:
        """The request for the next answer."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        body = {"model": self.model, "messages": [*system, *self.messages], "stream": stream, **self.fields}
        if stream and self.verbose:
            body["stream_options"] = {"include_usage": True}
        return body

    def ask(self, prompt: str) -> None:
        self.messages.append({"role": "user", "content": prompt})

    def answered(self, text: str) -> None:
        """The answer, or as much as came; a question without any is taken back."""
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()
        if not self.history:
            self.messages.clear()

    def obey(self, verb: Verb, rest: str) -> str:
        """Do what a command says (all but /exit and /show of the model); what to answer. Raises CliError."""
        if verb is Verb.CLEAR:
            self.messages.clear()
            return "forgotten"
        if verb is Verb.SYSTEM:
            return self._set_system(rest)
        if verb is Verb.SET:
            return self._set(rest)
        if verb is Verb.SHOW:
            return self._shown(rest)
        if verb is Verb.LOAD:
            if not rest:
                raise wrong_use("/load needs a model's name", "`berth list` shows the models")
            self.model = rest
            return f"{rest} answers from now on"
        return HELP

    def _set_system(self, text: str) -> str:
        self.system = text or None
        return "so be it" if text else "no system message"

    def _set(self, rest: str) -> str:
        """As in Ollama, and any field of the request."""
        key, _, value = rest.removeprefix("parameter ").strip().partition(" ")
        value = value.strip()
        if key == "system":
            return self._set_system(_unquoted(value))
        if key in _SWITCHES and not value:
            setattr(self, *_SWITCHES[key])
            return key
        if key in _FIXED:
            raise wrong_use(f"{key} can't be set", "/help lists what can be done")
        if key == "num_ctx":
            raise wrong_use("num_ctx is set by `berth assign MODEL --max-model-len N --restart`")
        self._set_field(_FIELDS.get(key, key), value)
        return self._shown("parameters")

    def _set_field(self, key: str, value: str) -> None:
        """Raises CliError for a word that is neither a switch nor a field that was set."""
        if (key, value) == ("format", "json"):
            self.fields["response_format"] = {"type": "json_object"}
        elif key == "noformat":
            self.fields.pop("response_format", None)
        elif key in ("think", "nothink"):
            self.fields["chat_template_kwargs"] = {"enable_thinking": key == "think"}
        elif value:
            self.fields[key] = json_or_text(value)
        elif key in self.fields:
            del self.fields[key]
        elif key:
            raise wrong_use(f"{key} is not set", f"/set {key} VALUE sets it, /help lists the rest")

    def _shown(self, what: str) -> str:
        if what == "system":
            return self.system or "no system message"
        if what != "parameters":
            raise wrong_use(f"there is no {what!r} to show", "/show, /show parameters or /show system")
        return (
            " ".join(f"{name}={json.dumps(given)}" for name, given in self.fields.items()) or "nothing is set"
        )


def command_in(line: str) -> tuple[Verb, str] | None:
    """The command that a line is, with its text; None: it is something to say. Raises CliError."""
    if not line.startswith("/"):
        return None
    word, _, rest = line[1:].partition(" ")
    try:
        return _ALSO.get(word) or Verb(word), rest.strip()
    except ValueError:
        raise wrong_use(f"/{word} is no command", "/help lists them") from None


def _unquoted(text: str) -> str:
    """`"Be kind"` says Be kind."""
    is_quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'"
    return text.strip('"') if text.startswith('"""') else text[1:-1] if is_quoted else text
