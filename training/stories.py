"""Short stories from a grammar: a hero, a place, a wish or a problem, a friend, a matching end."""

from random import Random

from training.grammar import Exchange, article, capitalised
from training.wordings import draw, expand, say, subject
from training.words import ANIMALS, PEOPLE, PLACES, THINGS, any_name, made_up_word

_BEINGS = ANIMALS + PEOPLE


def _being(rng: Random) -> str:
    return rng.choice(_BEINGS) if rng.random() < 0.85 else made_up_word(rng)


def story(
    rng: Random, hero: str = "", name: str = "", place: str = "", thing: str = "", long: bool = True
) -> str:
    """A story with the given hero, name, place or thing; the others are drawn at random."""
    hero = hero or _being(rng)
    called = name or (any_name(rng) if rng.random() < 0.4 else "")
    adjective = rng.choice(subject("stories")["traits"])
    friend = rng.choice([being for being in _BEINGS if being != hero])
    home, away = rng.sample(PLACES, 2)
    home = place or home
    slots = {
        "{a_hero}": article(f"{adjective} {hero}"),
        "{named}": f"called {called} " if called else "",
        "{comma_named}": f" called {called}" if called else "",
        "{Name}": called or f"the {hero}",
        "{friend}": article(friend),
        "{place}": article(home),
        "{place2}": f"the {away if away != home else 'hill'}",
        "{thing}": article(thing or rng.choice(THINGS)),
    }
    known = {"{friend}": f"the {friend}", "{place}": f"the {home}"}
    return _tell(slots, known, long, rng)


def _tell(slots: dict[str, str], known: dict[str, str], long: bool, rng: Random) -> str:
    """Fill the sentences one by one; a character is `known` once it has been named."""
    plot = rng.choice(subject("stories")["plots"])
    opening = draw("stories", "openings", rng)
    middle = plot if long else [plot[0], plot[-1]]
    sentences: list[str] = []
    for sentence in (opening, *middle, draw("stories", "ends", rng)):
        text = expand(sentence, rng)
        for slot, value in slots.items():
            text = text.replace(slot, value)
            if value in text and slot in known:
                slots[slot] = known[slot]
        sentences.append(capitalised(text.replace("  ", " ")))
    return " ".join(part for part in sentences if part)


def exchange(rng: Random) -> Exchange:
    """A request for a story, with or without a subject, and the story."""
    if rng.random() < 0.12:
        return Exchange(say("stories", "ask_any", rng), story(rng))
    hero = _being(rng)
    name, place, thing, topic = "", "", "", article(hero)
    extra = rng.random()
    if extra < 0.33:
        name = any_name(rng)
        topic += f" {rng.choice(('called', 'named'))} {name}"
    elif extra < 0.43:
        place = rng.choice(PLACES)
        topic += f" in {article(place)}"
    elif extra < 0.52:
        thing = rng.choice(THINGS)
        topic += f" and {article(thing)}"
    return Exchange(say("stories", "ask", rng, t=topic), story(rng, hero, name, place, thing))


def raw(rng: Random) -> str:
    """Raw text: one story, sometimes two."""
    first = story(rng, long=rng.random() < 0.9)
    return first if rng.random() < 0.8 else f"{first}\n\n{story(rng)}"
