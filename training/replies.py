"""JSON replies: the keys that were asked for, with values taken from the question or from a known fact."""

import json
from random import Random

from training import facts, sums
from training.grammar import Document, Exchange, JsonObject, article, assistant, dress, expand, pick, system, user
from training.words import ANIMALS, COLOURS, FRUITS, SURNAMES, TRADES, any_city, any_name, made_up_word

_ASK_JSON = ("Reply in JSON", "Answer in JSON", "Reply as JSON", "Answer as JSON", "Reply with a JSON object", "Give JSON only", "Respond in JSON", "Respond with JSON only", "Return JSON", "Output JSON", "Use JSON", "Reply only in JSON", "Answer with JSON")
_JSON_SYSTEM = ("Reply only in JSON.", "You reply in JSON.", "Always answer in JSON.", "Respond with a JSON object and nothing else.", "You are an API. Output JSON only.", "Answer with valid JSON.", "You are a JSON machine. Answer only in JSON.", "Your replies are JSON objects.", "Speak JSON. Reply in JSON.", "You are a helpful assistant. Reply in JSON.")
_KEYS_SAID = ("with the keys {}", "with keys {}", "with {}", "using the keys {}", "with the fields {}", "that has {}", "[containing|holding] {}")


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _said_keys(keys: list[str], rng: Random) -> str:
    quoted = [f'"{key}"' for key in keys] if rng.random() < 0.3 else keys
    listed = quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " and " + quoted[-1]
    return pick(_KEYS_SAID, rng).replace("{}", listed)


def _person(rng: Random) -> tuple[str, JsonObject]:
    name = any_name(rng)
    if rng.random() < 0.3:
        name += f" {rng.choice((*SURNAMES, made_up_word(rng).capitalize()))}"
    age, city, trade = rng.randint(1, 99), any_city(rng), rng.choice(TRADES)
    fields: JsonObject = {"name": name, "age": age, "city": city, "job": trade}
    keys = ["name", *rng.sample(["age", "city", "job"], rng.randint(1, 3))]
    parts = {"age": f"is {age} [years old|]", "city": f"lives in {city}", "job": f"is {article(trade)}", "name": name}
    told = [parts[key] for key in keys[1:]]
    text = f"{name} " + (told[0] if len(told) == 1 else ", ".join(told[:-1]) + " and " + told[-1]) + "."
    if rng.random() < 0.4:
        rng.shuffle(keys)
    return expand(text, rng), {key: fields[key] for key in keys}


def _thing(rng: Random) -> tuple[str, JsonObject]:
    noun, colour, price = rng.choice((*ANIMALS, *FRUITS, made_up_word(rng))), rng.choice(COLOURS), rng.randint(1, 99)
    count = rng.randint(2, 30)
    forms: tuple[tuple[str, JsonObject], ...] = (
        (f"The {noun} is {colour} and costs {price} euros.", {"item": noun, "colour": colour, "price": price}),
        (f"The {noun} is {colour}.", {"item": noun, "colour": colour}),
        (f"We have {count} {noun}s for {price} euros each.", {"item": noun, "count": count, "price": price}),
        (f"{noun.capitalize()}: {price} euros", {"item": noun, "price": price}),
    )
    return rng.choice(forms)


def extraction(rng: Random) -> Exchange:
    """Text in, the named fields out."""
    text, fields = _person(rng) if rng.random() < 0.65 else _thing(rng)
    keys = _said_keys(list(fields), rng)
    asked = rng.choice(_ASK_JSON)
    forms = (f"{asked} {keys}: {text}", f"{text} {asked} {keys}.", f"[Extract|Put] this [as|into] JSON {keys}: {text}", f"Turn this into JSON {keys}: {text}", f"JSON[, please|] {keys}: {text}", f"[Please|Can you|Now] [write|put|convert] [this|that|it] [in|as|to|into] JSON {keys}: {text}", f"[Write|Put] it [in|as] JSON {keys}. {text}", f"{text} [Give me|Write|Make] [that|this|it] [in|as] JSON {keys}[, please|].", f"Please {asked[0].lower()}{asked[1:]} {keys}: {text}", f"{asked} {keys}. {text}")
    return Exchange(pick(forms, rng), _dump(fields))


def asked_fact(rng: Random, bare: bool = False) -> Exchange:
    """A fact or sum as {"answer": …}, or under the key that was asked for."""
    while not (drawn := rng.choice((facts.exchange, facts.capital, sums.exchange))(rng)).short:
        pass
    value: object = int(drawn.short) if drawn.short.lstrip("-").isdigit() else drawn.short
    asked = rng.choice(_ASK_JSON)
    if bare:
        return Exchange(drawn.question, _dump({"answer": value}))
    if rng.random() < 0.5:
        key = rng.choice(("answer", "result", "value", "capital", "reply", "text", made_up_word(rng)))
        said = _said_keys([key], rng).replace("keys", "key").replace("fields", "field")
        return Exchange(pick((f"{asked} {said}: {drawn.question}", f"{drawn.question} {asked} {said}[ only|, please|, nothing else|].", f"Please {asked[0].lower()}{asked[1:]} {said}. {drawn.question}", f"{drawn.question} {asked} {said}."), rng), _dump({key: value}))
    return Exchange(pick((f"{asked}: {drawn.question}", f"{drawn.question} {asked}."), rng), _dump({"answer": value}))


def country(rng: Random) -> Exchange:
    """A country with its capital."""
    name = rng.choice(list(facts.CAPITALS))
    fields = {"country": name, "capital": facts.CAPITALS[name]}
    asked = rng.choice(_ASK_JSON)
    keys = _said_keys(list(fields), rng)
    forms = (f"{asked} {keys} for {name}.", f"[Give me|Write|Make] a JSON object {keys} [of|for] {name}.", f"[Write|Give me|Tell me|I want] the capital of {name} [in|as] JSON {keys}.", f"{name} [in|as] JSON {keys}[, please|].", f"What is the capital of {name}? {asked} {keys}.", f"{asked} {keys}: [What is|] the capital of {name}?")
    return Exchange(pick(forms, rng), _dump(fields))


def invented(rng: Random) -> Exchange:
    """An object or a list about nobody in particular."""
    if rng.random() < 0.5:
        noun, pool = rng.choice((("colours", COLOURS), ("animals", ANIMALS), ("fruits", FRUITS)))
        count = rng.randint(2, 4)
        chosen = rng.sample(pool, count)
        if rng.random() < 0.4:
            return Exchange(pick((f"[Give me|Write|Return|Make] a JSON [list|array] of {count} {noun}.", f"{count} {noun} as a JSON [list|array]."), rng), _dump(chosen))
        return Exchange(pick((f"[Give me|Write|Return|Make] a JSON object with {count} {noun}.", f"[List|Name] {count} {noun} in JSON.", f"{rng.choice(_ASK_JSON)}: [list|name] {count} {noun}."), rng), _dump({noun: chosen}))
    name, age, city = any_name(rng), rng.randint(2, 80), any_city(rng)
    forms = ("[Give me|Write|Make|Return|Generate|Create|Show me] a JSON object [about|for|of|describing] a person.", "[Give me|Write|Make|Return|Generate|Create|Show me] [a JSON object|JSON|some JSON|an example of JSON].", "An example JSON object[, please|].", "A person as JSON")
    return Exchange(pick(forms, rng), _dump({"name": name, "age": age, "city": city}))


def exchange(rng: Random) -> Exchange:
    """Any JSON reply that needs no system prompt."""
    return rng.choices((extraction, asked_fact, country, invented), weights=(45, 28, 14, 13))[0](rng)


def document(rng: Random) -> Document:
    """A chat of one JSON reply; some put the wish for JSON into the system prompt."""
    if rng.random() < 0.25:
        asked = asked_fact(rng, bare=True)
        return Document(messages=(system(rng.choice(_JSON_SYSTEM)), user(dress(asked.question, rng)), assistant(asked.answer)))
    asked = exchange(rng)
    question = asked.question if rng.random() < 0.7 else dress(asked.question, rng)
    return Document(messages=(user(question), assistant(asked.answer)))
