"""Reads `wordings/*.toml`, which contain the generators' sentences, and picks one of them.

A wording is a template: `[a|b]` are alternatives (they nest), `[a|]` is optional, `{x}` is a slot.
"""

import re
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

_FOLDER = Path(__file__).with_name("wordings")
_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")


@cache
def subject(name: str) -> dict[str, Any]:
    """The content of one file."""
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def expand(template: str, rng: Random) -> str:
    """Choose among all alternatives, the innermost first, and tidy the spaces that options leave."""
    while found := _ALTERNATIVES.search(template):
        choice = rng.choice(found.group(1).split("|"))
        template = template[: found.start()] + choice + template[found.end() :]
    template = re.sub(r" +([,.])(?= |$)", r"\1", template)
    return re.sub(r"(?<=\S) {2,}", " ", template).strip()


def pick(templates: Sequence[str], rng: Random) -> str:
    """One of the templates, expanded."""
    return expand(rng.choice(templates), rng)


def fill(text: str, /, **slots: object) -> str:
    """The text with its `{slots}` filled; other braces stay, for they may be JSON."""
    for slot, value in slots.items():
        text = text.replace("{" + slot + "}", str(value))
    return text


def draw(name: str, form: str, rng: Random) -> str:
    """One wording of a form, unexpanded; a form with a single wording is a plain string."""
    wordings = subject(name)["forms"][form]
    return wordings if isinstance(wordings, str) else str(rng.choice(wordings))


def say(name: str, form: str, rng: Random, /, **slots: object) -> str:
    """One wording of a form, expanded and filled."""
    return fill(expand(draw(name, form, rng), rng), **slots)
