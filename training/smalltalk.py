"""Greetings, identity, thanks, copying and spelling, and replies to questions beyond the model."""

from random import Random

from training.grammar import Exchange, casual
from training.wordings import draw, fill, pick, say, subject
from training.words import ANIMALS, COLOURS, FRUITS, THINGS, any_city, any_name, made_up_word

_VERBS = ("sees", "likes", "finds", "follows", "draws", "helps")


def talk(rng: Random) -> Exchange:
    """Greeting, identity, thanks."""
    topic = rng.choice(subject("talk")["talk"])
    return casual(Exchange(pick(topic["ask"], rng), topic["answer"]), rng)


def unknown(rng: Random) -> Exchange:
    """A question beyond the model, and a polite refusal."""
    slots = {
        "t": rng.choice(subject("talk")["topics"]),
        "w": made_up_word(rng),
        "y": str(rng.randint(1400, 2030)),
        "a": rng.choice((*THINGS, *FRUITS, made_up_word(rng))),
        "c": any_city(rng),
        "n": f"{any_name(rng)} {made_up_word(rng).capitalize()}",
    }
    return Exchange(say("talk", "open", rng, **slots), subject("talk")["unknown"])


def any_sentence(rng: Random) -> str:
    """A new sentence to copy."""
    slots = {
        "x": rng.choice(ANIMALS),
        "y": rng.choice(THINGS),
        "c": rng.choice(COLOURS),
        "v": rng.choice(_VERBS),
        "n": any_name(rng),
        "city": any_city(rng),
        "w": made_up_word(rng),
        "w2": made_up_word(rng),
        "w3": made_up_word(rng),
        "d": str(rng.randint(0, 9)),
        "d2": str(rng.randint(0, 9)),
    }
    return fill(draw("talk", "sentences", rng), **slots)


def copying(rng: Random) -> Exchange:
    """Repeat, spell, first letter, the alphabet."""
    text = any_sentence(rng)
    word = rng.choice((made_up_word(rng), rng.choice(ANIMALS), any_name(rng)))
    kind = rng.random()
    if kind < 0.72:
        return Exchange(say("talk", "repeat", rng, text=text), text)
    if kind < 0.85:
        return Exchange(say("talk", "spell", rng, word=word), "-".join(word.upper()))
    if kind < 0.93:
        letter = word[0].upper()
        return Exchange(say("talk", "first_letter", rng, word=word), f"{word} begins with {letter}.", letter)
    return Exchange(say("talk", "alphabet", rng), " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
