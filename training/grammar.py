"""Shared by all generators: the document type, messages, and how people phrase questions.

Knows no subject. Every random choice comes from the caller's `random.Random`: a seed determines the corpus.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple, TypeVar

from training.wordings import draw, say

T = TypeVar("T")
JsonObject = dict[str, Any]
Message = dict[str, Any]

_QUESTION = re.compile(r"(What|Which \w+|Who|Where|How \w+) (is|are) (.{3,60})\?$")


class Exchange(NamedTuple):
    """One question with its full answer and, if there is one, the bare answer ("Paris")."""

    question: str
    answer: str
    short: str = ""


@dataclass(frozen=True)
class Document:
    """A chat (`messages`, possibly with `tools`) or, if `text` is set, raw text to continue."""

    messages: tuple[Message, ...] = ()
    tools: tuple[JsonObject, ...] = ()
    text: str = ""
    thinking: bool = False


def capitalised(text: str) -> str:
    """The text with its first letter in upper case and the rest unchanged."""
    return text[:1].upper() + text[1:]


def dress(question: str, rng: Random) -> str:
    """A question as people type it: an opener, lower case, no question mark, thanks at the end."""
    plain = _QUESTION.match(question)
    if plain and rng.random() < 0.15:  # "What is X?" becomes "Could you tell me what X is?"
        asked, verb, thing = plain.groups()
        lead = say("dress", "asides", rng)
        return f"{lead} {asked[:1].lower()}{asked[1:]} {thing} {verb}{rng.choice('??.')}"
    if question.endswith("?") and rng.random() < 0.08:
        question = question[:-1] + draw("dress", "endings", rng) + "?"
    if rng.random() < 0.24:
        opener = _opener(rng)
        keep = question.startswith(("I ", "I'")) or opener.endswith((". ", "! ", "? "))
        question = opener + (question if keep else question[:1].lower() + question[1:])
    elif rng.random() < 0.15:
        question = question[:1].lower() + question[1:]
    if rng.random() < 0.12:
        question = question.rstrip("?.")
    if rng.random() < 0.06:
        question += draw("dress", "closers", rng)
    return question


def _opener(rng: Random) -> str:
    if rng.random() < 0.5:
        return draw("dress", "openers", rng)
    return say("dress", "asides", rng) + rng.choice((": ", ", ", " "))


def casual(exchange: Exchange, rng: Random) -> Exchange:
    """Sometimes all in lower case; only for questions whose answer copies nothing from them."""
    return exchange._replace(question=exchange.question.lower()) if rng.random() < 0.07 else exchange


def user(content: str) -> Message:
    """A user's message."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """An assistant's message."""
    return {"role": "assistant", "content": content}


def system(content: str) -> Message:
    """A system message."""
    return {"role": "system", "content": content}


def shuffled(items: Sequence[T], rng: Random) -> list[T]:
    """A shuffled copy."""
    return rng.sample(list(items), len(items))


def join_and(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(items) < 2:
        return "".join(items)
    return ", ".join(items[:-1]) + " and " + items[-1]


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
