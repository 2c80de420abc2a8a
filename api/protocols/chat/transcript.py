"""A chat as a plain transcript, for a model whose own template is unknown. Pure.

An engine with completions alone serves a base model, or any model without its template. Markers such as
ChatML's mean nothing to a model that was not trained on them, but every model has read dialogues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from api.protocols.base import InvalidProtocolRequest

STOP = "\nUser:"  # else the model would go on with the user's next turn

_NAMES = {"user": "User", "assistant": "Assistant", "system": "System", "developer": "System"}


def transcript(messages: Sequence[Mapping[str, Any]], *, continues_last: bool) -> str:
    """The prompt. `continues_last`: the last message is the beginning of the answer.

    Raises InvalidProtocolRequest for what a transcript can't express.
    """
    turns = []
    for number, message in enumerate(messages):
        path = f"messages[{number}]"
        role = _NAMES.get(str(message.get("role")))
        if role is None or message.get("tool_calls"):
            raise _refusal(f"{path}.role", "tools need an engine that has /v1/chat/completions itself")
        text = _text(message.get("content"), f"{path}.content")
        is_opening = role == "System" and number == 0
        turns.append(f"{text}\n" if is_opening else f"{role}: {text}")
    prompt = "\n".join(turns)
    return prompt if continues_last else f"{prompt}\nAssistant:"


def _text(content: Any, path: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise _refusal(path, "must be a string or a list of parts")
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise _refusal(
                f"{path}[{number}].type", f"{kind!r} is not supported: this engine reads text only"
            )
        texts.append(part["text"])
    return "\n".join(texts)


def _refusal(param: str, problem: str) -> InvalidProtocolRequest:
    return InvalidProtocolRequest(f"{param}: {problem}", param=param, status=400)
