"""A chat: its messages and settings, and its commands. Knows nothing of terminals or HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cli.errors import wrong_use
from cli.values import json_or_text

HELP = """\
/system TEXT      set the system message; without TEXT, remove it
/set KEY VALUE    set a field of the request, e.g. /set temperature 0.2; without VALUE, unset it
/set              show all fields that are set
/set verbose      show tokens per second after each response; /set quiet: don't
/set nowordwrap   let the terminal break lines anywhere; /set wordwrap: between words
/set nohistory    don't remember earlier messages; /set history: do
/set format json  respond in JSON; /set noformat: in any format
/set nothink      respond without reasoning, if the model supports it; /set think: with
/show             show the model's details; /show parameters, /show system
/load MODEL       continue with another model
/clear            forget the messages so far
/bye              exit, like Ctrl-D
/?                show this help
\"\"\"               begins and ends a message of several lines
Ctrl-C            stops a response"""


class Verb(StrEnum):
    """Commands after a slash."""

    EXIT = "exit"
    CLEAR = "clear"
    SYSTEM = "system"
    SET = "set"
    SHOW = "show"
    LOAD = "load"
    HELP = "help"


_VERB_ALIASES: Mapping[str, Verb] = {"bye": Verb.EXIT, "quit": Verb.EXIT, "?": Verb.HELP, "model": Verb.LOAD}
_FIELDS: Mapping[str, str] = {
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
}  # Ollama's names
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
    """The messages and settings of a chat; `fields` are fields of the request as given."""

    model: str
    system: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    verbose: bool = False  # show the speed of each response
    word_wrap: bool = True
    history: bool = True
    messages: list[dict[str, str]] = field(default_factory=list)

    def body(self, *, stream: bool) -> dict[str, Any]:
        """The request for the next response."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        body = {"model": self.model, "messages": [*system, *self.messages], "stream": stream, **self.fields}
        if stream and self.verbose:
            body["stream_options"] = {"include_usage": True}
        return body

    def ask(self, prompt: str) -> None:
        self.messages.append({"role": "user", "content": prompt})

    def answered(self, text: str) -> None:
        """Add the response, or its part so far; without one, remove the prompt."""
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()
        if not self.history:
            self.messages.clear()

    def execute(self, verb: Verb, rest: str) -> str:
        """Execute a command (except /exit and /show of the model); returns the reply. Raises CliError."""
        if verb is Verb.CLEAR:
            self.messages.clear()
            return "messages cleared"
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
            return f"now chatting with {rest}"
        return HELP

    def _set_system(self, text: str) -> str:
        self.system = text or None
        return "system message set" if text else "no system message"

    def _set(self, rest: str) -> str:
        """Settings as in Ollama, and any field of the request."""
        key, _, value = rest.removeprefix("parameter ").strip().partition(" ")
        value = value.strip()
        if key == "system":
            return self._set_system(_unquoted(value))
        if key in _SWITCHES and not value:
            setattr(self, *_SWITCHES[key])
            return key
        if key in _FIXED:
            raise wrong_use(f"{key} can't be set", "/help lists the commands")
        if key == "num_ctx":
            raise wrong_use("num_ctx is set by `berth assign MODEL --max-model-len N --restart`")
        self._set_field(_FIELDS.get(key, key), value)
        return self._shown("parameters")

    def _set_field(self, key: str, value: str) -> None:
        """Raises CliError for a word that is neither a switch nor a field that is set."""
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
            raise wrong_use(f"{key} is not set", f"/set {key} VALUE sets it, /help lists the commands")

    def _shown(self, what: str) -> str:
        if what == "system":
            return self.system or "no system message"
        if what != "parameters":
            raise wrong_use(f"can't show {what!r}", "use /show, /show parameters or /show system")
        return (
            " ".join(f"{name}={json.dumps(given)}" for name, given in self.fields.items()) or "nothing is set"
        )


def command_in(line: str) -> tuple[Verb, str] | None:
    """The command in a line, with its text; None for a message. Raises CliError."""
    if not line.startswith("/"):
        return None
    word, _, rest = line[1:].partition(" ")
    try:
        return _VERB_ALIASES.get(word) or Verb(word), rest.strip()
    except ValueError:
        raise wrong_use(f"/{word} is not a command", "/help lists the commands") from None


def _unquoted(text: str) -> str:
    """`"Be kind"` becomes Be kind."""
    is_quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'"
    return text.strip('"') if text.startswith('"""') else text[1:-1] if is_quoted else text
