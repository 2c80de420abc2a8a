# ruff: noqa: SIM905 - lists of words read better as prose
"""Word lists and a generator of invented words, so that the model learns to copy, not to recall."""

from random import Random

NAMES = (
    "Anna Ben Clara David Ella Felix Grace Hugo Ida Jonas Kara Leo Mia Noah Olga Paul Rosa Sam Tina "
    "Umar Vera Will Yara Zoe Ada Alan Linus Marie Nina Oscar Petra Quinn Ruth Sven Tom Ulla Victor "
    "Wendy Xenia Yusuf Amir Bella Carlos Dana Emil Fatima George Hanna Ivan Julia Kenji Lena Mateo "
    "Nadia Omar Priya Ravi Sofia Tariq"
).split()
SURNAMES = (
    "Smith Weber Garcia Kim Rossi Novak Silva Haddad Patel Mori Jensen Dubois Lopez Brown Berg"
).split()

CITIES = (
    "Paris|Berlin|London|Rome|Madrid|Lisbon|Vienna|Oslo|Stockholm|Helsinki|Warsaw|Prague|Athens|Dublin|"
    "Tokyo|Beijing|Delhi|Cairo|Nairobi|Lima|Ottawa|Canberra|Hamburg|Munich|Milan|Naples|Lyon|Porto|"
    "Seville|Boston|Chicago|New York|San Francisco|Los Angeles|Seattle|Toronto|Sydney|Melbourne|Mumbai|"
    "Shanghai|Seoul|Bangkok|Istanbul|Moscow|Zurich|Geneva|Brussels|Amsterdam|Rotterdam|Copenhagen|"
    "Reykjavik|Cape Town|Rio de Janeiro|Buenos Aires|Mexico City|Hong Kong|Singapore|Dubai|Houston|"
    "Denver|Miami|Leeds|Glasgow|Krakow|Budapest"
).split("|")

ANIMALS = (
    "fox cat dog bear owl mouse rabbit wolf hedgehog squirrel duck goose frog turtle lion tiger "
    "elephant horse cow sheep goat pig hen penguin whale dolphin seal otter beaver bee ant butterfly "
    "snail crow robin dragon unicorn donkey monkey parrot badger deer crab octopus fish kitten puppy "
    "swan spider zebra giraffe camel"
).split()
PEOPLE = (
    "sailor baker knight princess king queen robot wizard farmer fisherman pirate gardener teacher "
    "painter clockmaker girl boy giant captain astronaut shepherd postman cook doctor dancer singer "
    "ghost witch miller tailor"
).split()
PLACES = (
    "forest harbour village castle island mountain river garden lighthouse meadow desert city library "
    "mill beach bakery cave farm bridge lake market school ship tower valley"
).split()
THINGS = (
    "lantern|map|key|boat|bell|drum|kite|book|hat|ring|clock|feather|stone|shell|flute|ball|rope|star|"
    "ladder|compass|umbrella|blanket|mirror|cake|letter|seed|apple|coin|candle|wheel"
).split("|")
COLOURS = "red blue green yellow white black orange purple pink brown grey golden silver".split()
FRUITS = "apple banana cherry grape lemon mango orange peach pear plum strawberry melon kiwi fig".split()
VEGETABLES = "carrot potato tomato onion cabbage spinach pea bean leek pumpkin cucumber pepper".split()
TRADES = (
    "teacher baker sailor doctor engineer painter farmer nurse pilot cook writer driver gardener"
).split()
MODELS = (
    "Qwen/Qwen3-0.6B|Qwen/Qwen3-4B|Qwen/Qwen3-8B|Qwen/Qwen3-32B|Qwen/Qwen2.5-7B-Instruct|berth-demo|"
    "berth-demo|berth-demo|meta-llama/Llama-3.1-8B-Instruct|mistralai/Mistral-7B-Instruct-v0.3|"
    "google/gemma-3-4b-it|microsoft/phi-4|BAAI/bge-m3|openai/gpt-oss-20b"
).split("|")

_ONSETS = (
    "b c d f g h j k l m n p r s t v w y z qu br bl gl sw tw sn sp wh ch cl dr fl gr kr pl sh sl st th tr"
).split()
_VOWELS = "a e i o u a e i o ai ea oo ou".split()
_FIRST_PARTS = ("New", "San", "Port", "Bad", "East", "Saint", "Los")
_ENDS = ["", "", "", "n", "r", "l", "s", "m", "t", "x", "ck", "rd", "nd"]
_TAILS = "ville burg ton vik sund land son ing ford ley gard um us io ia ette stein ham berg mouth".split()


def made_up_word(rng: Random, syllables: int = 0) -> str:
    """A pronounceable word that is in no dictionary."""
    count = syllables or rng.choice((1, 2, 2, 2, 3))
    start = rng.choice(_VOWELS) + rng.choice("bdfgklmnprstvz") if rng.random() < 0.12 else ""
    stem = start + "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(count))
    return stem + rng.choice(_ENDS if rng.random() < 0.75 else _TAILS)


def any_name(rng: Random) -> str:
    """A first name, sometimes an invented one."""
    return rng.choice(NAMES) if rng.random() < 0.6 else made_up_word(rng).capitalize()


def any_city(rng: Random) -> str:
    """A city, sometimes an invented one or one of two words."""
    draw = rng.random()
    if draw < 0.55:
        return rng.choice(CITIES)
    if draw < 0.9:
        return made_up_word(rng).capitalize()
    return f"{rng.choice(_FIRST_PARTS)} {made_up_word(rng).capitalize()}"
