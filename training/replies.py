"""JSON replies: the keys that were asked for, with values taken from the question or from a known fact."""

import json
from random import Random

from training import facts, sums
from training.grammar import Document, Exchange, JsonObject, article, assistant, dress, system, user
from training.wordings import draw, expand, say
from training.words import ANIMALS, COLOURS, FRUITS, SURNAMES, TRADES, any_city, any_name, made_up_word

_ONE_KEY = ("answer", "result", "value", "capital", "reply", "text")


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _said_keys(keys: list[str], rng: Random) -> str:
    quoted = [f'"{key}"' for key in keys] if rng.random() < 0.3 else keys
    listed = quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " and " + quoted[-1]
    return say("replies", "keys", rng).replace("{}", listed)


def _person(rng: Random) -> tuple[str, JsonObject]:
    name = any_name(rng)
    if rng.random() < 0.3:
        name += f" {rng.choice((*SURNAMES, made_up_word(rng).capitalize()))}"
    age, city, trade = rng.randint(1, 99), any_city(rng), rng.choice(TRADES)
    fields: JsonObject = {"name": name, "age": age, "city": city, "job": trade}
    keys = ["name", *rng.sample(["age", "city", "job"], rng.randint(1, 3))]
    parts = {"age": f"is {age} [years old|]", "city": f"lives in {city}", "job": f"is {article(trade)}"}
    values = [parts[key] for key in keys[1:]]
    text = (
        f"{name} " + (values[0] if len(values) == 1 else ", ".join(values[:-1]) + " and " + values[-1]) + "."
    )
    if rng.random() < 0.4:
        rng.shuffle(keys)
    return expand(text, rng), {key: fields[key] for key in keys}


def _thing(rng: Random) -> tuple[str, JsonObject]:
    noun = rng.choice((*ANIMALS, *FRUITS, made_up_word(rng)))
    colour, price = rng.choice(COLOURS), rng.randint(1, 99)
    count = rng.randint(2, 30)
    painted: JsonObject = {"item": noun, "colour": colour}
    forms: tuple[tuple[str, JsonObject], ...] = (
        (f"The {noun} is {colour} and costs {price} euros.", {**painted, "price": price}),
        (f"The {noun} is {colour}.", painted),
        (f"We have {count} {noun}s for {price} euros each.", {"item": noun, "count": count, "price": price}),
        (f"{noun.capitalize()}: {price} euros", {"item": noun, "price": price}),
    )
    return rng.choice(forms)


def _lowered(asked: str) -> str:
    return asked[0].lower() + asked[1:]


def extraction(rng: Random) -> Exchange:
    """Text in, the named fields out."""
    text, fields = _person(rng) if rng.random() < 0.65 else _thing(rng)
    keys = _said_keys(list(fields), rng)
    asked = draw("replies", "ask", rng)
    slots = {"asked": asked, "asked_low": _lowered(asked), "keys": keys, "text": text}
    return Exchange(say("replies", "extract", rng, **slots), _dump(fields))


def asked_fact(rng: Random, bare: bool = False) -> Exchange:
    """A fact or sum as {"answer": …}, or under the key that was asked for."""
    kinds = (facts.exchange, facts.capital, sums.addition, sums.exchange)
    while not (drawn := rng.choice(kinds)(rng)).short:
        pass
    value: object = int(drawn.short) if drawn.short.lstrip("-").isdigit() else drawn.short
    asked = draw("replies", "ask", rng)
    slots = {"asked": asked, "asked_low": _lowered(asked), "question": drawn.question}
    if bare:
        return Exchange(drawn.question, _dump({"answer": value}))
    if rng.random() < 0.5:
        key = rng.choice((*_ONE_KEY, made_up_word(rng)))
        said = _said_keys([key], rng).replace("keys", "key").replace("fields", "field")
        return Exchange(say("replies", "fact_key", rng, said=said, **slots), _dump({key: value}))
    return Exchange(say("replies", "fact", rng, **slots), _dump({"answer": value}))


def country(rng: Random) -> Exchange:
    """A country with its capital."""
    name = rng.choice(list(facts.capitals()))
    fields = {"country": name, "capital": facts.capitals()[name]}
    asked = draw("replies", "ask", rng)
    keys = _said_keys(list(fields), rng)
    return Exchange(say("replies", "country", rng, asked=asked, keys=keys, name=name), _dump(fields))


def invented(rng: Random) -> Exchange:
    """An object or a list with arbitrary content."""
    if rng.random() < 0.5:
        return _some_of_a_kind(rng)
    name, age, city = any_name(rng), rng.randint(2, 80), any_city(rng)
    return Exchange(say("replies", "person", rng), _dump({"name": name, "age": age, "city": city}))


def _some_of_a_kind(rng: Random) -> Exchange:
    noun, pool = rng.choice((("colours", COLOURS), ("animals", ANIMALS), ("fruits", FRUITS)))
    count = rng.randint(2, 4)
    chosen = rng.sample(pool, count)
    if rng.random() < 0.4:
        return Exchange(say("replies", "list", rng, count=count, noun=noun), _dump(chosen))
    asked = draw("replies", "ask", rng)
    return Exchange(say("replies", "listed", rng, asked=asked, count=count, noun=noun), _dump({noun: chosen}))


def exchange(rng: Random) -> Exchange:
    """Any JSON reply that needs no system prompt."""
    kinds = (extraction, asked_fact, country, invented)
    return rng.choices(kinds, weights=(42, 34, 12, 12))[0](rng)


def document(rng: Random) -> Document:
    """A chat with one JSON reply; some ask for JSON in the system prompt."""
    if rng.random() < 0.25:
        asked = asked_fact(rng, bare=True)
        head = system(draw("replies", "system", rng))
        return Document(messages=(head, user(dress(asked.question, rng)), assistant(asked.answer)))
    asked = exchange(rng)
    question = asked.question if rng.random() < 0.7 else dress(asked.question, rng)
    return Document(messages=(user(question), assistant(asked.answer)))
