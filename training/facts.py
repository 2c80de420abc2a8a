"""Small facts that everyone can check: capitals, colours, days, animals, planets, opposites, computing."""

from random import Random

from training.grammar import Exchange, casual, join_and, pick
from training.words import ANIMALS, COLOURS, FRUITS, TRADES, VEGETABLES

CAPITALS = dict(
    pair.split("=")
    for pair in (
        "France=Paris|Germany=Berlin|Italy=Rome|Spain=Madrid|Portugal=Lisbon|Austria=Vienna|Norway=Oslo|Sweden=Stockholm|"
        "Finland=Helsinki|Poland=Warsaw|Greece=Athens|Ireland=Dublin|Japan=Tokyo|China=Beijing|India=New Delhi|Egypt=Cairo|"
        "Kenya=Nairobi|Peru=Lima|Canada=Ottawa|Australia=Canberra|England=London|the United Kingdom=London|Russia=Moscow|"
        "Brazil=Brasilia|Argentina=Buenos Aires|Chile=Santiago|Mexico=Mexico City|Cuba=Havana|Turkey=Ankara|Ukraine=Kyiv|"
        "Hungary=Budapest|Denmark=Copenhagen|Belgium=Brussels|the Netherlands=Amsterdam|Switzerland=Bern|Iceland=Reykjavik|"
        "South Korea=Seoul|Thailand=Bangkok|the United States=Washington|Croatia=Zagreb|Romania=Bucharest|Bulgaria=Sofia"
    ).split("|")
)
CONTINENTS = {
    "Europe": "France Germany Italy Spain Portugal Austria Norway Sweden Finland Poland Greece Ireland Hungary".split(),
    "Asia": "Japan China India Thailand".split(), "Africa": "Egypt Kenya".split(),
    "South America": "Brazil Argentina Peru Chile".split(), "North America": "Canada Mexico Cuba".split(),
}  # fmt: skip
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
PLANETS = "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split()
SEASONS = "spring summer autumn winter".split()
OPPOSITES = "hot=cold|big=small|up=down|left=right|day=night|good=bad|fast=slow|old=new|open=closed|light=dark|high=low|happy=sad|wet=dry|full=empty|hard=soft|long=short|rich=poor|loud=quiet|early=late|strong=weak|black=white|yes=no|start=stop|first=last|young=old|clean=dirty|thick=thin|deep=shallow|in=out|win=lose"
THINGS_COLOUR = "the sky=blue|grass=green|snow=white|blood=red|the sun=yellow|a banana=yellow|a tomato=red|coal=black|an orange=orange|milk=white|a carrot=orange|the sea=blue|a lemon=yellow|a leaf=green|chocolate=brown|a strawberry=red|a cucumber=green"
SOUNDS = "dog=barks|cat=meows|cow=moos|duck=quacks|sheep=bleats|lion=roars|pig=grunts|frog=croaks|bee=buzzes|horse=neighs|owl=hoots|wolf=howls|mouse=squeaks|rooster=crows|snake=hisses|bird=sings"
YOUNG = "dog=puppy|cat=kitten|cow=calf|sheep=lamb|horse=foal|duck=duckling|hen=chick|lion=cub|bear=cub|goat=kid|pig=piglet|frog=tadpole|deer=fawn|goose=gosling"
COUNTS = "legs has a dog=4|legs has a cat=4|legs has a spider=8|legs has a bird=2|legs has an ant=6|legs has a bee=6|legs has a horse=4|arms has an octopus=8|days are in a week=7|months are in a year=12|hours are in a day=24|minutes are in an hour=60|seconds are in a minute=60|days are in a year=365|seasons are there=4|planets are there=8|sides has a triangle=3|sides has a square=4|sides has a hexagon=6|sides has a pentagon=5|letters are in the alphabet=26|continents are there=7|wheels has a bicycle=2|wheels has a car=4|bits are in a byte=8|fingers has a hand=5|metres are in a kilometre=1000|weeks are in a year=52|centimetres are in a metre=100|cents are in a euro=100"
HELLOS = "French=Bonjour|German=Hallo|Spanish=Hola|Italian=Ciao|Portuguese=Olá|Japanese=Konnichiwa|Swedish=Hej|Dutch=Hallo|Polish=Cześć|Latin=Salve"
GENERAL: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("What is the [largest|biggest] planet", "Which planet is the [largest|biggest]"), "Jupiter is the largest planet.", "Jupiter"),
    (("What is the smallest planet", "Which planet is the smallest"), "Mercury is the smallest planet.", "Mercury"),
    (("Which planet is [closest|nearest] to the sun", "What is the planet [closest|nearest] to the sun"), "Mercury is closest to the sun.", "Mercury"),
    (("Which planet has rings", "What planet has [big|] rings"), "Saturn has rings.", "Saturn"),
    (("Which planet [do we live on|is our home]", "On which planet do we live", "What planet do we live on"), "We live on Earth.", "Earth"),
    (("Which planet is [red|the red planet]", "What is the red planet"), "Mars is the red planet.", "Mars"),
    (("What is [the largest|the biggest] ocean", "Which ocean is the [largest|biggest]"), "The Pacific is the largest ocean.", "the Pacific"),
    (("What is the [highest|tallest] mountain", "Which mountain is the [highest|tallest]"), "Mount Everest is the highest mountain.", "Mount Everest"),
    (("What is the [largest|biggest] animal", "Which animal is the [largest|biggest]"), "The blue whale is the largest animal.", "the blue whale"),
    (("What is the [fastest|quickest] [land|] animal", "Which animal is the fastest"), "The cheetah is the fastest animal on land.", "the cheetah"),
    (("What is the tallest animal", "Which animal is the tallest"), "The giraffe is the tallest animal.", "the giraffe"),
    (("What is water made of", "What is H2O", "What is the formula of water", "What is the chemical formula [of|for] water"), "Water is H2O: hydrogen and oxygen.", "H2O"),
    (("At what temperature does water boil", "When does water boil", "What is the boiling point of water"), "Water boils at 100 degrees Celsius.", "100"),
    (("At what temperature does water freeze", "When does water freeze", "What is the freezing point of water"), "Water freezes at 0 degrees Celsius.", "0"),
    (("What do bees make", "What does a bee make"), "Bees make honey.", "honey"),
    (("What do cows [give|drink|give us]", "Where does milk come from"), "Cows drink water and give milk.", "milk"),
    (("Where do fish live", "Where does a fish live"), "Fish live in water.", "in water"),
    (("Why is the sky blue",), "The sky is blue because air scatters blue light more than red light.", ""),
    (("What is the moon", "What is the Moon"), "The Moon is Earth's only natural satellite.", ""),
    (("What is the sun", "What is the Sun", "Is the sun a star"), "The sun is the star that Earth goes around.", "a star"),
    (("What is a [large|] language model", "What is an LLM", "What does LLM [mean|stand for]", "Explain LLMs"), "An LLM is a large language model: a program that has learned from text to predict the next token.", ""),
    (("What is a token", "Explain tokens", "What are tokens"), "A token is a piece of text, such as a word or a part of one, that a model reads or writes.", ""),
    (("What is a GPU", "What does GPU [mean|stand for]", "Explain [what a GPU is|GPUs]"), "A GPU is a graphics processor. It does many sums at once, which makes models fast.", ""),
    (("What is a CPU", "What does CPU [mean|stand for]"), "A CPU is the main processor of a computer.", ""),
    (("What is [a|the] KV cache", "Explain the KV cache", "What does KV cache mean"), "The KV cache keeps the keys and values of earlier tokens, so that they need not be computed again.", ""),
    (("What is prefill", "Explain prefill", "What does prefill mean"), "Prefill is the first pass over the whole prompt. It fills the KV cache.", ""),
    (("What is decod[e|ing]", "What does decode mean", "Explain decode"), "Decode is the phase in which a model writes its answer, one token per step.", ""),
    (("What is batching", "What is continuous batching", "Explain batching"), "Batching runs several requests in one step. In continuous batching they may join and leave at any step.", ""),
    (("What is [temperature|the temperature of a model|sampling temperature]", "What does temperature do"), "Temperature sets how freely a model chooses its next token. At 0 it always takes the likeliest one.", ""),
    (("What is Python", "Explain Python", "Tell me about Python"), "Python is a programming language that is easy to read.", ""),
    (("What is [Linux|linux]", "Explain Linux"), "Linux is a free operating system.", ""),
    (("What is JSON", "Explain JSON", "What does JSON mean"), "JSON is a text format for data, made of objects, lists, strings and numbers.", ""),
    (("What is HTTP", "Explain HTTP", "What does HTTP mean"), "HTTP is the protocol that browsers and servers speak.", ""),
    (("What is an API", "Explain APIs", "What does API mean"), "An API is a set of calls by which one program uses another.", ""),
    (("What is curl", "Explain curl", "What does curl do"), "curl is a command that sends HTTP requests.", ""),
    (("What is a port", "Explain ports", "What does port mean"), "A port is a number that tells a computer which program a connection is for.", ""),
)  # fmt: skip
_LISTS: dict[str, list[str]] = {
    "animals": ANIMALS, "colours": COLOURS, "colors": COLOURS, "fruits": FRUITS, "vegetables": VEGETABLES,
    "jobs": TRADES, "capitals": sorted(CAPITALS.values()), "countries": [c for c in sorted(CAPITALS) if " " not in c],
    "cities": sorted(CAPITALS.values()),
}  # fmt: skip
_FIXED_LISTS = {"the days of the week": DAYS, "the months of the year": MONTHS, "the planets": PLANETS, "the seasons": SEASONS}
_NUMBER = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def _choice(table: str, rng: Random) -> tuple[str, str]:
    key, value = rng.choice(table.split("|")).split("=")
    return key, value


def capital(rng: Random) -> Exchange:
    """A country's capital, or the country of a capital."""
    country = rng.choice(list(CAPITALS))
    city = CAPITALS[country]
    if rng.random() < 0.2 and city != "London":
        forms = (f"{city} is the capital of which country?", f"[Which|What] country has the capital {city}?", f"In which country is {city}?", f"Where is {city}?")
        return Exchange(pick(forms, rng), f"{city} is the capital of {country}.", country)
    forms = (
        f"[What is|What's|Name|Tell me|Do you know|Give me] the capital [city|] of {country}?", f"[What is|What's|Name|Tell me|Do you know] the capital [city|] of {country}?",
        f"[Which|What] city is the capital of {country}?", f"{country}'s capital?", f"What is {country}'s capital [city|]?", f"[The capital|Capital] of {country}?",
        f"What capital [does {country} have|has {country}]?", f"[Which|What] is the capital of {country}?", f"[I need|Give me|Say|State] the [name of the|] capital of {country}.", f"[What is|What's] the [name|] of the capital of {country}?", f"[Of|For] {country}, [what|which] is the capital?", f"{country} has which capital?",
    )  # fmt: skip
    return Exchange(pick(forms, rng), f"The capital of {country} is {city}.", city)


def continent(rng: Random) -> Exchange:
    """Which continent a country lies in."""
    name = rng.choice(list(CONTINENTS))
    country = rng.choice(CONTINENTS[name])
    forms = (f"[On|In] which continent is {country}?", f"What continent is {country} in?", f"Which continent does {country} belong to?")
    return Exchange(pick(forms, rng), f"{country} is in {name}.", name)


def order(rng: Random) -> Exchange:
    """Neighbours in the week, the year, the planets, the alphabet."""
    noun, row = rng.choice((("day", DAYS), ("day", DAYS), ("month", MONTHS), ("planet", PLANETS), ("letter", list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))))
    index, after = rng.randrange(1, len(row) - 1), rng.random() < 0.65
    if noun in {"day", "month"} and rng.random() < 0.2:
        index = 0 if not after else len(row) - 1
    start, result = row[index], row[(index + (1 if after else -1)) % len(row)]
    word = "after" if after else "before"
    forms = (
        f"[What|Which] {noun} [comes|is] [right|just|directly|] {word} {start}?", f"{start} [is followed by|comes before] [which|what] {noun}?" if after else f"{start} comes after [which|what] {noun}?",
        f"[What|Which] {noun} [follows|comes next after] {start}?" if after else f"[Which|What] {noun} [precedes|is right before] {start}?",
        f"What [comes|is] {word} {start}?", f"The {noun} {word} {start}?", f"Name the {noun} {word} {start}.",
    )  # fmt: skip
    if noun == "day" and rng.random() < 0.3:
        word, tail = ("tomorrow", "is tomorrow") if after else ("yesterday", "was yesterday")
        return Exchange(f"If today is {start}, what {tail}?", f"{word.capitalize()} {tail.split()[0]} {result}.", result)
    return Exchange(pick(forms, rng), f"{result} comes {word} {start}.", result)


def opposite(rng: Random) -> Exchange:
    """The opposite of a word."""
    first, second = _choice(OPPOSITES, rng)
    if rng.random() < 0.4 and second not in {"short", "old", "soft"}:
        first, second = second, first
    forms = (f"What is the opposite of {first}?", f"[The opposite|Opposite] of {first}?", f"Which word is the opposite of {first}?", f"[Give me|Tell me|Name|Find] the opposite of {first}.", f"{first} is the opposite of what?", f"What is the [antonym|contrary] of {first}?")
    return Exchange(pick(forms, rng), f"The opposite of {first} is {second}.", second)


def nature(rng: Random) -> Exchange:
    """Colours of things, sounds and young of animals, how many of what."""
    kind = rng.random()
    if kind < 0.3:
        thing, colour = _choice(THINGS_COLOUR, rng)
        forms = (f"What [colour|color] is {thing}?", f"Which [colour|color] [is|has] {thing}?", f"What is the [colour|color] of {thing}?", f"Tell me the colour of {thing}.", f"{thing[0].upper()}{thing[1:]} is what [colour|color]?", f"[In|Of] which colour is {thing}?")
        return Exchange(pick(forms, rng), f"{thing[0].upper()}{thing[1:]} is {colour}.", colour)
    if kind < 0.5:
        animal, sound = _choice(SOUNDS, rng)
        forms = (f"What sound does a {animal} make?", f"What does a {animal} do when it makes a noise?", f"Which [sound|noise] does a {animal} make?", f"How does a {animal} sound?")
        return Exchange(pick(forms, rng), f"A {animal} {sound}.", sound)
    if kind < 0.65:
        animal, young = _choice(YOUNG, rng)
        forms = (f"What is a [young|baby] {animal} called?", f"[What do you call|What is the name of] a [young|baby] {animal}?", f"What is the young of a {animal}?", f"[The name of|Name] a [baby|young] {animal}?", f"How do you call a [young|baby] {animal}?")
        return Exchange(pick(forms, rng), f"A young {animal} is called a {young}.", young)
    what, number = _choice(COUNTS, rng)
    noun, rest = what.split(" ", 1)
    verb, obj = rest.split(" ", 1)
    asked = {"has": f"[has|does] {obj}[ have|]", "are": rest}[verb]
    tail = f"{obj[0].upper()}{obj[1:]} has {number} {noun}." if verb == "has" else f"There are {number} {noun}{' ' + obj if obj != 'there' else ''}."
    if verb == "has":
        asked = rng.choice((f"does {obj} have", f"does {obj} have", rest, f"are on {obj}", f"can you count on {obj}"))
    return Exchange(f"How many {noun} {asked}?", tail, number)


def hello_in(rng: Random) -> Exchange:
    """A greeting in another language."""
    language, word = _choice(HELLOS, rng)
    forms = (f"[How do you say|Say|How do I say|What is] [hello|hi] in {language}?", f"Greet me in {language}.", f"What is the {language} [word for|for] hello?")
    return Exchange(pick(forms, rng), f"{word}! That is hello in {language}.", word)


def general(rng: Random) -> Exchange:
    """One of the single facts."""
    questions, answer, short = rng.choice(GENERAL)
    return Exchange(pick(questions, rng) + "?", answer, short)


def listing(rng: Random) -> Exchange:
    """A list of a few, as a sentence or with bullets."""
    if rng.random() < 0.3:
        name, row = rng.choice(list(_FIXED_LISTS.items()))
        return Exchange(pick((f"[List|Name|Tell me|What are|Give me|Which are|Can you list] {name}?",), rng), f"{join_and(row)}.")
    noun, pool = rng.choice(list(_LISTS.items()))
    count = rng.choice((2, 3, 3, 3, 4, 5, 5))
    said = str(count) if rng.random() < 0.5 else _NUMBER[count]
    chosen = rng.sample(pool, count)
    if rng.random() < 0.3:
        question = pick((f"[Make|Write|Give me] a [bullet|bulleted] list of {said} {noun}.", f"List {said} {noun} as bullet points."), rng)
        return Exchange(question, "\n".join(f"- {item}" for item in chosen))
    question = pick((f"[List|Name|Tell me|Give me|Write down|Can you name|Say] {said} {noun}.", f"What are {said} {noun}?", f"I need {said} {noun}."), rng)
    return Exchange(question, f"{join_and(chosen)}.".replace(chosen[0], chosen[0][0].upper() + chosen[0][1:], 1))


def exchange(rng: Random) -> Exchange:
    """Any small fact."""
    kinds = (capital, continent, order, opposite, nature, hello_in, general, listing)
    return casual(rng.choices(kinds, weights=(26, 4, 11, 8, 16, 3, 18, 14))[0](rng), rng)


def sentence(rng: Random) -> str:
    """Raw text: several facts as plain statements, capitals first."""
    drawn = [rng.choice((capital, capital, nature, general, opposite))(rng).answer for _ in range(rng.randint(1, 5))]
    return " ".join(drawn)
