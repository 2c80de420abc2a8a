"""Short stories from a grammar: a hero, a place, a wish, a trouble, a friend, an end that fits the beginning."""

from random import Random

from training.grammar import Exchange, article, capitalised, expand, pick
from training.words import ANIMALS, PEOPLE, PLACES, THINGS, any_name, made_up_word

_TRAITS = "small young old brave clever kind shy curious cheerful lonely tired patient proud".split()
_ASK = (
    "[Tell|Tell me|Write|Write me|Give me|Make up|I want|I would like|Can you tell me|Can you write|Could you write] [a|a short|a little|a small|a nice] [story|tale] about {t}.",
    "[Tell|Tell me|Write|Write me|Invent|Please tell me] [a|a short|a little] [story|bedtime story|tale|fairy tale] [about|with|of] {t}.",
    "[A story|Short story|Story] about {t}[, please|]", "Do you know a story about {t}?", "[I want|I would like|I'd like|I need] [a|a short|a nice|another] [story|tale|fairy tale|bedtime story] [about|with] {t}.", "[Would you|Will you|Please] [tell|write|invent|read] [me|us|] [a|one] [short|funny|sweet|new|] [story|tale] [about|of|with] {t}[?|.]",
    "[Story|Tale|Story time]: {t}", "[Let|Make] {t} be the hero of [a|your] story.", "[Write|Tell|Make] a [story|tale] [in which|where] {t} is the [main character|hero].", "A [bedtime|short|little] [story|tale] [about|with] {t}, please[!|.|]", "[Think of|Come up with] a story about {t}.", "[I have a child who loves|My child likes] {t}. Tell a story.",
)  # fmt: skip
_ASK_ANY = ("[Tell|Tell me|Write|Write me|Make up|Invent|Can you tell me|Please write] [a|a short|a little|any] [story|tale|bedtime story|fairy tale].", "[A story|Story time|I want a story], please.")
_OPENINGS = (
    "Once upon a time there was {a_hero} {named}who lived near {place}.", "Once upon a time, {a_hero} {named}lived near {place}.",
    "There was once {a_hero} {named}who lived by {place}.", "Long ago, near {place}, there lived {a_hero}{comma_named}.", "By {place} lived {a_hero}{comma_named}.",
)  # fmt: skip
_WISHES = (
    ("One [morning|day|evening], {Name} lost {thing}.", "[{Name} looked everywhere, but it was gone|All day {Name} searched, and found nothing].",
     "Then {friend} came by and [said|called], \"I saw it near {place2}!\"", "Together they walked to {place2}, and there it was.", "{Name} was glad and [thanked|hugged] {friend}."),
    ("{Name} [wanted|wished] to see {place2}, but the way was long.", "One [morning|day], {Name} packed {thing} and set out.", "On the way {Name} met {friend}, who [was lost|had no company|knew the way].",
     "They shared their bread and walked on together.", "When they came to {place2} at last, the sun was [rising|setting], and they were happy."),
    ("One night there was a [storm|great wind|flood], and {place} was dark.", "{Name} heard someone call: it was {friend}, who [was stuck|was afraid|could not find the way].",
     "{Name} took {thing} and ran out into the [rain|wind|night].", "\"Do not be afraid,\" said {Name}, \"I am here.\"", "By morning the storm was over, and the two were friends."),
    ("{Name} had no friends and was often sad.", "One day {Name} found {thing} in {place2}.", "It belonged to {friend}, who had looked for it for a week.", "\"Thank you!\" said {friend}. \"Will you stay for tea?\"",
     "From that day on, {Name} was never alone."),
    ("Every day {Name} [worked hard|sang a song|watched the sky] and dreamed of {thing}.", "One day {friend} [came|arrived] and said, \"Help me, and I will give you what you wish.\"",
     "{Name} helped [gladly|at once], and the work took three days.", "On the third day {friend} gave {Name} {thing}.", "{Name} laughed with joy and shared it with everyone near {place}."),
)  # fmt: skip
_ENDS = ("", "", "They lived happily ever after.", "And that is the end of the story.", "And if you listen at night, you can still hear them [laugh|sing].", "The end.")
_BEINGS = ANIMALS + PEOPLE


def _being(rng: Random) -> str:
    return rng.choice(_BEINGS) if rng.random() < 0.85 else made_up_word(rng)


def story(rng: Random, hero: str = "", name: str = "", place: str = "", thing: str = "", long: bool = True) -> str:
    """A story with the given hero, name, place or thing; what is not given is drawn."""
    hero = hero or _being(rng)
    called = name or (any_name(rng) if rng.random() < 0.4 else "")
    adjective = rng.choice(_TRAITS)
    friend = rng.choice([being for being in _BEINGS if being != hero])
    home, away = rng.sample(PLACES, 2)
    home = place or home
    words = {
        "{a_hero}": article(f"{adjective} {hero}"), "{named}": f"called {called} " if called else "",
        "{comma_named}": f" called {called}" if called else "", "{Name}": called or f"the {hero}",
        "{friend}": article(friend), "{place}": article(home), "{place2}": f"the {away if away != home else 'hill'}",
        "{thing}": article(thing or rng.choice(THINGS)),
    }  # fmt: skip
    known = {"{friend}": f"the {friend}", "{place}": f"the {home}"}
    plot = rng.choice(_WISHES)
    told: list[str] = []
    for sentence in (rng.choice(_OPENINGS), *(plot if long else (*plot[:1], plot[-1])), rng.choice(_ENDS)):
        text = expand(sentence, rng)
        for key, value in words.items():
            text = text.replace(key, value)
            if value in text and key in known:  # from the second mention on it is "the"
                words[key] = known[key]
        told.append(capitalised(text.replace("  ", " ")))
    return " ".join(part for part in told if part)


def exchange(rng: Random) -> Exchange:
    """A wish for a story, with or without a subject, and the story."""
    if rng.random() < 0.12:
        return Exchange(pick(_ASK_ANY, rng), story(rng))
    hero = _being(rng)
    name, place, thing, topic = "", "", "", article(hero)
    extra = rng.random()
    if extra < 0.2:
        name = any_name(rng)
        topic += f" {rng.choice(('called', 'named'))} {name}"
    elif extra < 0.32:
        place = rng.choice(PLACES)
        topic += f" in {article(place)}"
    elif extra < 0.42:
        thing = rng.choice(THINGS)
        topic += f" and {article(thing)}"
    return Exchange(pick(_ASK, rng).replace("{t}", topic), story(rng, hero, name, place, thing))


def raw(rng: Random) -> str:
    """Raw text: one story, sometimes two."""
    first = story(rng, long=rng.random() < 0.9)
    return first if rng.random() < 0.8 else f"{first}\n\n{story(rng)}"
