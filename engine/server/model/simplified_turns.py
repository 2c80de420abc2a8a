"""A conversation in plainer turns, for chat templates that refuse it as it is. Pure.

Agents give several system turns, several turns of the user in a row, and histories that another model's calls
are in. Many templates take one system turn or none, users and assistants in alternation, one call at a time,
ids of nine letters, no tools. Nothing is left out: what such a template has no place for is said elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Turn = dict[str, Any]

_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")  # all that Mistral's templates take


def simplifications(turns: list[Turn]) -> Iterator[list[Turn]]:
    """The same conversation, plainer each time: what changes least comes first."""
    for make_plainer in (
        _with_short_ids,
        _with_single_calls,
        _with_one_system_turn,
        _with_alternating_turns,
        _without_system_turn,
        _with_calls_in_words,
    ):
        plainer = make_plainer(turns)
        if plainer != turns:
            turns = plainer
            yield turns


def _with_short_ids(turns: list[Turn]) -> list[Turn]:
    """Calls have ids of nine letters and digits, always the same for the same call."""
    plainer: list[Turn] = []
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
        plainer.append(turn)
    return plainer


def _short_id(name: str) -> str:
    return name if _SHORT_ID.fullmatch(name) else hashlib.sha256(name.encode()).hexdigest()[:9]


def _with_single_calls(turns: list[Turn]) -> list[Turn]:
    """Each call in a turn of its own, followed by its result."""
    plainer: list[Turn] = []
    groups = _groups(turns, lambda group, turn: turn["role"] == "tool" and "tool_calls" in group[0])
    for turn, *results in groups:
        several = len(turn.get("tool_calls", ())) > 1
        plainer += _one_by_one(turn, results) if several else [turn, *results]
    return plainer


def _one_by_one(turn: Turn, results: list[Turn]) -> list[Turn]:
    """Results without the id of a call come last."""
    calls = turn["tool_calls"]
    by_call: dict[Any, list[Turn]] = {call.get("id"): [] for call in calls}
    others: list[Turn] = []
    for result in results:
        by_call.get(result.get("tool_call_id"), others).append(result)
    told: list[Turn] = []
    for number, call in enumerate(calls):
        said = turn if number == 0 else {"role": turn["role"], "content": None}
        told += [{**said, "tool_calls": [call]}, *by_call.pop(call.get("id"), [])]
    return [*told, *others]


def _with_one_system_turn(turns: list[Turn]) -> list[Turn]:
    """For templates that take one system turn, at the beginning.

    Those at the beginning become one. A later one becomes part of the user's turn at its place, marked so
    that the model can tell the two apart: such templates often want users and assistants to alternate.
    """
    begin = next((n for n, one in enumerate(turns) if one["role"] != "system"), len(turns))
    first = [_merged(turns[:begin], "\n\n")] if begin else []
    groups = _groups(
        turns[begin:],
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
    """Neighbours of one role are one turn; what a user says beside results of tools stands with the last."""
    speaker: str | None = None  # the last that has spoken: calls and their results are in between

    def goes_on(group: list[Turn], turn: Turn) -> bool:
        nonlocal speaker
        before, role, last = speaker, turn["role"], group[-1]
        if role == "user" or (role == "assistant" and "tool_calls" not in turn):
            speaker = role
        if role == "user" and before == "user":
            return group[0]["role"] in ("user", "tool")
        return role == last["role"] == "assistant" and "tool_calls" not in last

    if turns:
        goes_on([turns[0]], turns[0])
    return [_merged(group, "\n\n") for group in _groups(turns, goes_on)]


def _groups(turns: list[Turn], goes_on: Callable[[list[Turn], Turn], bool]) -> list[list[Turn]]:
    """Turns that belong together: `goes_on` says of the next whether it belongs to the group before it."""
    groups: list[list[Turn]] = []
    for turn in turns:
        if groups and goes_on(groups[-1], turn):
            groups[-1].append(turn)
        else:
            groups.append([turn])
    return groups


def _merged(group: list[Turn], between: str) -> Turn:
    """One turn of several: the first one's role, all contents, of the rest what came last."""
    first, *others = group
    if not others:
        return first
    contents = [turn.get("content") for turn in group]
    if first["role"] == "tool":
        return {**first, "content": between.join(_text(content) for content in contents)}
    fields = {name: value for turn in group for name, value in turn.items()}
    return {**fields, "content": _join(contents, between)}


def _without_system_turn(turns: list[Turn]) -> list[Turn]:
    """What the system says begins the user's first turn."""
    if not turns or turns[0]["role"] != "system":
        return turns
    system, *rest = turns
    if not rest or rest[0]["role"] != "user":
        return [{**system, "role": "user"}, *rest]
    first = rest[0]
    return [{**first, "content": _join([system.get("content"), first.get("content")], "\n\n")}, *rest[1:]]


def _with_calls_in_words(turns: list[Turn]) -> list[Turn]:
    """For templates that know users and assistants alone: calls and results are said."""
    as_parts = any(isinstance(turn.get("content"), list) for turn in turns)
    said = [_in_words(turn) for turn in turns]
    if as_parts:
        said = [{**turn, "content": _parts(turn.get("content") or "")} for turn in said]
    return _with_alternating_turns(said)


def _in_words(turn: Turn) -> Turn:
    if turn["role"] == "tool":
        return {"role": "user", "content": f"Result of the tool: {_text(turn.get('content'))}"}
    if "tool_calls" not in turn:
        return turn
    called = [_call_in_words(call["function"]) for call in turn["tool_calls"]]
    said = {name: value for name, value in turn.items() if name != "tool_calls"}
    words = [text for text in (_text(turn.get("content")), *called) if text]
    return {**said, "content": "\n".join(words)}


def _call_in_words(function: Turn) -> str:
    arguments = function.get("arguments")
    given = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f"Call of the tool {function['name']}: {given}"


def _without_system(turn: Turn) -> Turn:
    return _as_reminder(turn) if turn["role"] == "system" else turn


def _as_reminder(turn: Turn) -> Turn:
    """A system turn in the mouth of the user, with the mark that agents put around such text."""
    content = turn.get("content")
    opening, closing = "<system-reminder>\n", "\n</system-reminder>"
    if isinstance(content, list):
        parts = [{"type": "text", "text": opening}, *content, {"type": "text", "text": closing}]
        return {"role": "user", "content": parts}
    return {"role": "user", "content": f"{opening}{content or ''}{closing}"}


def _join(contents: Sequence[Any], between: str) -> Any:
    """Texts as one text; as a list of parts where one is a list, as a template takes the one or the other."""
    given = [content for content in contents if content]
    if any(isinstance(content, list) for content in given):
        return [part for content in given for part in _parts(content)]
    return between.join(given) if given else None


def _parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _text(content: Any) -> str:
    return "\n".join(part["text"] for part in content) if isinstance(content, list) else content or ""
