"""Simplifies a conversation for chat templates that reject it as it is. Pure.

Agents send several system turns, consecutive user turns, and histories with another model's tool calls. Many
templates accept at most one system turn, strictly alternating users and assistants, one call per turn,
nine-character ids, or no tools. Nothing is dropped: unsupported content moves to another turn.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Turn = dict[str, Any]

_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")  # required by Mistral's templates


def simplifications(turns: list[Turn]) -> Iterator[list[Turn]]:
    """Ever simpler forms of the conversation, starting with the smallest change."""
    for simplify in (
        _with_short_ids,
        _with_single_calls,
        _with_one_system_turn,
        _with_alternating_turns,
        _without_system_turn,
        _with_calls_as_text,
    ):
        simplified = simplify(turns)
        if simplified != turns:
            turns = simplified
            yield turns


def _with_short_ids(turns: list[Turn]) -> list[Turn]:
    """Replace call ids by nine letters and digits, deterministically."""
    simplified: list[Turn] = []
    unanswered: dict[str, None] = {}
    for number, turn in enumerate(turns):
        if "tool_calls" in turn:
            ids = [_short_id(call.get("id") or f"{number}.{n}") for n, call in enumerate(turn["tool_calls"])]
            calls = [{**call, "id": name} for call, name in zip(turn["tool_calls"], ids, strict=True)]
            turn, unanswered = {**turn, "tool_calls": calls}, dict.fromkeys(ids)
        elif turn["role"] == "tool":
            given = turn.get("tool_call_id") or next(iter(unanswered), str(number))
            turn = {**turn, "tool_call_id": _short_id(given)}
            unanswered.pop(turn["tool_call_id"], None)
        simplified.append(turn)
    return simplified


def _short_id(name: str) -> str:
    return name if _SHORT_ID.fullmatch(name) else hashlib.sha256(name.encode()).hexdigest()[:9]


def _with_single_calls(turns: list[Turn]) -> list[Turn]:
    """Put each call in a turn of its own, followed by its result."""
    simplified: list[Turn] = []
    groups = _groups(turns, lambda group, turn: turn["role"] == "tool" and "tool_calls" in group[0])
    for turn, *results in groups:
        several = len(turn.get("tool_calls", ())) > 1
        simplified += _split_calls(turn, results) if several else [turn, *results]
    return simplified


def _split_calls(turn: Turn, results: list[Turn]) -> list[Turn]:
    """Results that match no call come last."""
    calls = turn["tool_calls"]
    by_call: dict[Any, list[Turn]] = {call.get("id"): [] for call in calls}
    others: list[Turn] = []
    for result in results:
        by_call.get(result.get("tool_call_id"), others).append(result)
    split: list[Turn] = []
    for number, call in enumerate(calls):
        base = turn if number == 0 else {"role": turn["role"], "content": None}
        split += [{**base, "tool_calls": [call]}, *by_call.pop(call.get("id"), [])]
    return [*split, *others]


def _with_one_system_turn(turns: list[Turn]) -> list[Turn]:
    """For templates that accept only one system turn, at the beginning.

    Initial system turns are merged. A later one joins the adjacent user turn, marked so that the model can
    distinguish them: such templates often require users and assistants to alternate.
    """
    num_leading = next((n for n, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    first = [_merged(turns[:num_leading], "\n\n")] if num_leading else []
    groups = _groups(
        turns[num_leading:],
        lambda group, turn: (
            _is_users(turn)
            and _is_users(group[0])
            and (turn["role"] == "system" or group[-1]["role"] == "system")
        ),
    )
    return first + [_merged([_without_system(turn) for turn in group], "\n") for group in groups]


def _is_users(turn: Turn) -> bool:
    return turn["role"] in ("user", "system")


def _with_alternating_turns(turns: list[Turn]) -> list[Turn]:
    """Merge consecutive turns of one role; user text next to tool results joins the last result."""
    speaker: str | None = None  # of the last turn that is not a call or a result

    def continues(group: list[Turn], turn: Turn) -> bool:
        nonlocal speaker
        before, role, last = speaker, turn["role"], group[-1]
        if role == "user" or (role == "assistant" and "tool_calls" not in turn):
            speaker = role
        if role == "user" and before == "user":
            return group[0]["role"] in ("user", "tool")
        return role == last["role"] == "assistant" and "tool_calls" not in last

    if turns:
        continues([turns[0]], turns[0])
    return [_merged(group, "\n\n") for group in _groups(turns, continues)]


def _groups(turns: list[Turn], continues: Callable[[list[Turn], Turn], bool]) -> list[list[Turn]]:
    """Group consecutive turns: `continues` decides whether a turn joins the previous group."""
    groups: list[list[Turn]] = []
    for turn in turns:
        if groups and continues(groups[-1], turn):
            groups[-1].append(turn)
        else:
            groups.append([turn])
    return groups


def _merged(group: list[Turn], between: str) -> Turn:
    """Merge turns: the first one's role, all contents, and the last value of every other field."""
    first, *others = group
    if not others:
        return first
    contents = [turn.get("content") for turn in group]
    if first["role"] == "tool":
        return {**first, "content": between.join(_text(content) for content in contents)}
    fields = {name: value for turn in group for name, value in turn.items()}
    return {**fields, "content": _join(contents, between)}


def _without_system_turn(turns: list[Turn]) -> list[Turn]:
    """Move the system turn to the start of the first user turn."""
    if not turns or turns[0]["role"] != "system":
        return turns
    system, *rest = turns
    if not rest or rest[0]["role"] != "user":
        return [{**system, "role": "user"}, *rest]
    first = rest[0]
    return [{**first, "content": _join([system.get("content"), first.get("content")], "\n\n")}, *rest[1:]]


def _with_calls_as_text(turns: list[Turn]) -> list[Turn]:
    """For templates without tools: calls and results become text."""
    as_parts = any(isinstance(turn.get("content"), list) for turn in turns)
    converted = [_as_text(turn) for turn in turns]
    if as_parts:
        converted = [{**turn, "content": _parts(turn.get("content") or "")} for turn in converted]
    return _with_alternating_turns(converted)


def _as_text(turn: Turn) -> Turn:
    if turn["role"] == "tool":
        return {"role": "user", "content": f"Result of the tool: {_text(turn.get('content'))}"}
    if "tool_calls" not in turn:
        return turn
    called = [_call_as_text(call["function"]) for call in turn["tool_calls"]]
    without_calls = {name: value for name, value in turn.items() if name != "tool_calls"}
    words = [text for text in (_text(turn.get("content")), *called) if text]
    return {**without_calls, "content": "\n".join(words)}


def _call_as_text(function: Turn) -> str:
    arguments = function.get("arguments")
    given = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f"Call of the tool {function['name']}: {given}"


def _without_system(turn: Turn) -> Turn:
    return _as_reminder(turn) if turn["role"] == "system" else turn


def _as_reminder(turn: Turn) -> Turn:
    """A system turn as user text, in the tags that agents use for such text."""
    content = turn.get("content")
    opening, closing = "<system-reminder>\n", "\n</system-reminder>"
    if isinstance(content, list):
        parts = [{"type": "text", "text": opening}, *content, {"type": "text", "text": closing}]
        return {"role": "user", "content": parts}
    return {"role": "user", "content": f"{opening}{content or ''}{closing}"}


def _join(contents: Sequence[Any], between: str) -> Any:
    """Join texts; if any content is a list of parts, the result is one too, as templates accept one kind."""
    given = [content for content in contents if content]
    if any(isinstance(content, list) for content in given):
        return [part for content in given for part in _parts(content)]
    return between.join(given) if given else None


def _parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _text(content: Any) -> str:
    return "\n".join(part["text"] for part in content) if isinstance(content, list) else content or ""
