"""Simple facts that are easy to check: capitals, colours, days, animals, planets, opposites, computing."""

from random import Random

from training.grammar import Exchange, capitalised, casual, join_and
from training.wordings import pick, say, subject
from training.words import ANIMALS, COLOURS, FRUITS, TRADES, VEGETABLES

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
PLANETS = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")
SEASONS = ("spring", "summer", "autumn", "winter")
_ROWS = {
    "the days of the week": DAYS,
    "the months of the year": MONTHS,
    "the planets": PLANETS,
    "the seasons": SEASONS,
}
_ORDERS = (
    ("day", DAYS),
    ("day", DAYS),
    ("month", MONTHS),
    ("planet", PLANETS),
    ("letter", tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")),
)
_NUMBER = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
_TWO_WAY = {"short", "old", "soft"}  # words with several opposites: asked in one direction only


def capitals() -> dict[str, str]:
    """Each country's capital."""
    return dict(subject("facts")["capitals"])


def _pair(table: str, rng: Random) -> tuple[str, str]:
    pairs: list[tuple[str, str]] = list(subject("facts")[table].items())
    return rng.choice(pairs)


def capital(rng: Random) -> Exchange:
    """A country's capital, or the country of a capital."""
    country, city = _pair("capitals", rng)
    if rng.random() < 0.2 and city != "London":
        question = say("facts", "capital_of", rng, city=city)
        return Exchange(question, f"{city} is the capital of {country}.", country)
    question = say("facts", "capital", rng, country=country)
    return Exchange(question, f"The capital of {country} is {city}.", city)


def continent(rng: Random) -> Exchange:
    """Which continent a country lies in."""
    name, countries = rng.choice(list(subject("facts")["continents"].items()))
    country = rng.choice(countries)
    return Exchange(say("facts", "continent", rng, country=country), f"{country} is in {name}.", name)


def order(rng: Random) -> Exchange:
    """Neighbours in the week, the year, the planets, the alphabet."""
    noun, row = rng.choice(_ORDERS)
    index, after = rng.randrange(1, len(row) - 1), rng.random() < 0.65
    if noun in {"day", "month"} and rng.random() < 0.2:
        index = len(row) - 1 if after else 0
    start, result = row[index], row[(index + (1 if after else -1)) % len(row)]
    if noun == "day" and rng.random() < 0.3:
        asked = "is tomorrow" if after else "was yesterday"
        answer = f"Tomorrow is {result}." if after else f"Yesterday was {result}."
        return Exchange(f"If today is {start}, what {asked}?", answer, result)
    word = "after" if after else "before"
    return Exchange(
        say("facts", word, rng, noun=noun, start=start), f"{result} comes {word} {start}.", result
    )


def opposite(rng: Random) -> Exchange:
    """The opposite of a word."""
    first, second = _pair("opposites", rng)
    if rng.random() < 0.4 and second not in _TWO_WAY:
        first, second = second, first
    question = say("facts", "opposite", rng, first=first)
    return Exchange(question, f"The opposite of {first} is {second}.", second)


def nature(rng: Random) -> Exchange:
    """Colours of things, sounds and young of animals, how many of what."""
    kind = rng.random()
    if kind < 0.3:
        thing, colour = _pair("colours", rng)
        question = say("facts", "colour", rng, thing=thing, Thing=capitalised(thing))
        return Exchange(question, f"{capitalised(thing)} is {colour}.", colour)
    if kind < 0.5:
        animal, sound = _pair("sounds", rng)
        return Exchange(say("facts", "sound", rng, animal=animal), f"A {animal} {sound}.", sound)
    if kind < 0.65:
        animal, young = _pair("young", rng)
        question = say("facts", "young", rng, animal=animal)
        return Exchange(question, f"A young {animal} is called a {young}.", young)
    return _how_many(rng)


def _how_many(rng: Random) -> Exchange:
    what, number = _pair("counts", rng)  # such as "legs has a dog" or "days are in a week"
    noun, rest = what.split(" ", 1)
    verb, place = rest.split(" ", 1)
    if verb == "has":
        forms = (f"does {place} have", f"does {place} have", rest, f"are on {place}")
        asked = rng.choice((*forms, f"can you count on {place}"))
        return Exchange(f"How many {noun} {asked}?", f"{capitalised(place)} has {number} {noun}.", number)
    where = "" if place == "there" else f" {place}"
    return Exchange(f"How many {noun} {rest}?", f"There are {number} {noun}{where}.", number)


def hello_in(rng: Random) -> Exchange:
    """A greeting in another language."""
    language, word = _pair("hellos", rng)
    question = say("facts", "hello", rng, language=language)
    return Exchange(question, f"{word}! That is hello in {language}.", word)


def general(rng: Random) -> Exchange:
    """One of the single facts."""
    fact = rng.choice(subject("facts")["general"])
    return Exchange(pick(fact["ask"], rng) + "?", fact["answer"], fact.get("short", ""))


def listing(rng: Random) -> Exchange:
    """A list of a few, as a sentence or with bullets."""
    if rng.random() < 0.3:
        name, row = rng.choice(list(_ROWS.items()))
        return Exchange(say("facts", "row", rng, name=name), f"{join_and(row)}.")
    noun, pool = rng.choice(list(_pools().items()))
    count = rng.choice((2, 3, 3, 3, 4, 5, 5))
    said = str(count) if rng.random() < 0.5 else _NUMBER[count]
    chosen = rng.sample(pool, count)
    if rng.random() < 0.3:
        question = say("facts", "bullets", rng, said=said, noun=noun)
        return Exchange(question, "\n".join(f"- {item}" for item in chosen))
    return Exchange(say("facts", "list", rng, said=said, noun=noun), capitalised(join_and(chosen)) + ".")


def _pools() -> dict[str, list[str]]:
    countries = sorted(capitals())
    cities = sorted(capitals().values())
    return {
        "animals": ANIMALS,
        "colours": COLOURS,
        "colors": COLOURS,
        "fruits": FRUITS,
        "vegetables": VEGETABLES,
        "jobs": TRADES,
        "capitals": cities,
        "countries": [country for country in countries if " " not in country],
        "cities": cities,
    }


def exchange(rng: Random) -> Exchange:
    """Any small fact."""
    kinds = (capital, continent, order, opposite, nature, hello_in, general, listing)
    return casual(rng.choices(kinds, weights=(26, 4, 11, 8, 16, 3, 18, 14))[0](rng), rng)


def sentence(rng: Random) -> str:
    """Raw text: several facts as plain statements, capitals first."""
    kinds = (capital, capital, nature, general, opposite)
    drawn = [rng.choice(kinds)(rng).answer for _ in range(rng.randint(1, 5))]
    return " ".join(dict.fromkeys(drawn))
