"""The small text machinery under all generators: templates with alternatives, and the document type.

Knows no subject. Every random choice comes from the `random.Random` that the caller passes in, so one
seed gives one corpus.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
JsonObject = dict[str, Any]
Message = dict[str, Any]

_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_OPENERS = (
    "Please tell me: ", "Tell me, ", "Hi! ", "Hey, ", "Hello, ", "Quick question: ", "I'd like to know: ",
    "Can you tell me: ", "One question: ", "Could you help me? ", "Question: ", "So, ", "Okay, ", "Ok, ", "Now ",
    "I wonder, ", "Help: ", "Sorry, ", "Good morning. ", "Do you know: ", "Just curious: ", "And ", "Well, ",
)  # fmt: skip
_ASIDES = (
    "[Could you|Can you|Would you|Will you] [please|kindly|quickly|briefly|] [tell me|explain|say|help me with this]", "[Do you|Would you] [happen to|] know",
    "[I want|I'd like|I would like|I need] to [know|ask|understand]", "I [forgot|am not sure|don't know|was wondering|have a question|can't remember]", "[Tell me|Say|Explain] [please|briefly|]",
    "[Excuse me|Hmm|Oh|Right|Now then|By the way|Next|One more thing|Listen|Dear model|Berth]", "[My boss|A friend|My child|Someone] [wants to know|asks|asked me]", "[Maybe you know|Let me ask|Just one thing|Be so kind]",
)
_QUESTION = re.compile(r"(What|Which \w+|Who|Where|How \w+) (is|are) (.{3,60})\?$")
_ENDINGS = (", please", ", do you know", " again", ", can you tell me", " exactly", ", in short", ", if I may ask", " then", ", I wonder", " for me", " now", " actually")
_CLOSERS = (" Please.", " Thanks!", " Thank you.", " please", " :)", " Thanks in advance.")


class Exchange(NamedTuple):
    """One question with its full answer and, where there is one, the bare answer ("Paris")."""

    question: str
    answer: str
    short: str = ""


@dataclass(frozen=True)
class Document:
    """A chat (`messages`, perhaps with `tools`) or, where `text` is set, raw text to continue."""

    messages: tuple[Message, ...] = ()
    tools: tuple[JsonObject, ...] = ()
    text: str = ""
    thinking: bool = False


def expand(template: str, rng: Random) -> str:
    """Replace each `[a|b|c]`, innermost first, by one of its alternatives; `[x|]` is an optional x."""
    while found := _ALTERNATIVES.search(template):
        choice = rng.choice(found.group(1).split("|"))
        template = template[: found.start()] + choice + template[found.end() :]
    template = re.sub(r" +([,.])(?= |$)", r"\1", template)
    return re.sub(r"(?<=\S) {2,}", " ", template).strip()


def pick(templates: Sequence[str], rng: Random) -> str:
    """One of the templates, expanded."""
    return expand(rng.choice(templates), rng)


def capitalised(text: str) -> str:
    """The text with its first letter in upper case and the rest untouched."""
    return text[:1].upper() + text[1:]


def dress(question: str, rng: Random) -> str:
    """Say a question the way people type: an opener, lower case, no question mark, a closing thanks."""
    plain = _QUESTION.match(question)
    if plain and rng.random() < 0.15:  # "What is X?" becomes "Could you tell me what X is?"
        asked, verb, subject = plain.groups()
        return f"{pick(_ASIDES, rng)} {asked[:1].lower()}{asked[1:]} {subject} {verb}{rng.choice('??.')}"
    if question.endswith("?") and rng.random() < 0.08:
        question = question[:-1] + rng.choice(_ENDINGS) + "?"
    if rng.random() < 0.24:
        opener = rng.choice(_OPENERS) if rng.random() < 0.5 else pick(_ASIDES, rng) + rng.choice((": ", ", ", " "))
        keep = question.startswith(("I ", "I'")) or opener.endswith((". ", "! ", "? "))
        question = opener + (question if keep else question[:1].lower() + question[1:])
    elif rng.random() < 0.15:
        question = question[:1].lower() + question[1:]
    if rng.random() < 0.12:
        question = question.rstrip("?.")
    if rng.random() < 0.06:
        question += rng.choice(_CLOSERS)
    return question


def casual(exchange: Exchange, rng: Random) -> Exchange:
    """Now and then all in lower case; only for questions whose answer copies nothing from them."""
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
    """"a", "a and b", "a, b and c"."""
    if len(items) < 2:
        return "".join(items)
    return ", ".join(items[:-1]) + " and " + items[-1]


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
