"""The tools that the corpus knows: their signatures, and questions with the arguments copied from them."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from training import smalltalk
from training.grammar import JsonObject
from training.wordings import say
from training.words import FRUITS, THINGS, any_city, any_name, made_up_word

Arguments = dict[str, object]

_SKIES = ("sunny", "rainy", "cloudy", "windy", "snowy", "foggy")
_LANGUAGES = ("French", "German", "Spanish", "Italian", "Polish", "Latin")


@dataclass(frozen=True)
class Call:
    """One tool's use: the question, the arguments in it, a result and the answer made of the result."""

    question: str
    arguments: Arguments
    result: JsonObject
    answer: str


@dataclass(frozen=True)
class Tool:
    """A tool under several names, with its parameters and a generator of uses."""

    names: tuple[str, ...]
    description: str
    parameters: dict[str, str]
    use: Callable[[Random], Call]


def _weather(rng: Random) -> Call:
    city, degrees, sky = any_city(rng), rng.randint(-9, 38), rng.choice(_SKIES)
    result = {"temperature": degrees, "sky": sky}
    answer = f"It is {sky} in {city}, at {degrees} degrees."
    return Call(say("tools", "weather", rng, c=city), {"city": city}, result, answer)


def _time(rng: Random) -> Call:
    city, clock = any_city(rng), f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    question = say("tools", "time", rng, c=city)
    return Call(question, {"city": city}, {"time": clock}, f"It is {clock} in {city}.")


def _arithmetic(word: str, sign: str) -> Callable[[Random], Call]:
    def use(rng: Random) -> Call:
        top = rng.choice((20, 100, 1000, 9999))
        a, b = rng.randint(0, top), rng.randint(0, top)
        result = {"+": a + b, "-": a - b, "*": a * b}[sign]
        question = say("tools", word, rng, a=a, b=b)
        return Call(question, {"a": a, "b": b}, {word: result}, f"{a} {sign} {b} = {result}")

    return use


def _search(rng: Random) -> Call:
    queries = (
        f"{rng.choice(FRUITS)} {rng.choice(('cake', 'soup', 'recipes', 'prices'))}",
        f"{made_up_word(rng)} {made_up_word(rng)}",
        f"{any_city(rng)} {rng.choice(('hotels', 'trains', 'museums', 'news'))}",
        made_up_word(rng),
        f"{rng.choice(THINGS)} {rng.choice(('shop', 'repair', 'history'))}",
    )
    query = rng.choice(queries)
    title = f"All about {query}"
    question = say("tools", "search", rng, q=query)
    return Call(question, {"query": query}, {"results": [title]}, f"I found this: {title}.")


def _translate(rng: Random) -> Call:
    text, language = smalltalk.any_sentence(rng), rng.choice(_LANGUAGES)
    question = say("tools", "translate", rng, t=text, l=language)
    result = made_up_word(rng)
    arguments: Arguments = {"text": text, "language": language}
    return Call(question, arguments, {"translation": result}, f"In {language} it is: {result}")


def _mail(rng: Random) -> Call:
    to, text = any_name(rng), smalltalk.any_sentence(rng)
    question = say("tools", "mail", rng, n=to, t=text)
    return Call(question, {"to": to, "text": text}, {"sent": True}, f"The message to {to} is sent.")


def _remind(rng: Random) -> Call:
    minutes, verb = rng.randint(1, 90), rng.choice(("buy", "call", "find", "wash", "sell"))
    text = f"{verb} {rng.choice((any_name(rng), made_up_word(rng), rng.choice(THINGS)))}"
    question = say("tools", "remind", rng, m=minutes, t=text)
    answer = f"I will remind you in {minutes} minutes to {text}."
    return Call(question, {"text": text, "minutes": minutes}, {"ok": True}, answer)


def _instance(rng: Random) -> Call:
    invented = f"{made_up_word(rng)}/{made_up_word(rng)}-{rng.randint(1, 9)}B"
    model = rng.choice(("berth-demo", "Qwen/Qwen3-0.6B", invented))
    question = say("tools", "instance", rng, m=model)
    answer = f"The instance of {model} is starting."
    return Call(question, {"model_name": model}, {"status": "starting"}, answer)


_WEATHER_NAMES = ("get_weather", "weather", "get_current_weather", "current_weather")
WEATHER = Tool(
    ("get_weather", "get_weather", *_WEATHER_NAMES), "Get the weather of a city", {"city": "string"}, _weather
)
TIME = Tool(
    ("get_time", "get_time", "current_time", "clock"), "Get the time in a city", {"city": "string"}, _time
)
_NUMBERS = {"a": "integer", "b": "integer"}
ADD = Tool(("add", "add", "add_numbers"), "Add two numbers", _NUMBERS, _arithmetic("sum", "+"))
SEARCH = Tool(
    ("search", "search", "web_search", "search_web"), "Search the web", {"query": "string"}, _search
)
TOOLS = (
    WEATHER,
    TIME,
    ADD,
    Tool(("multiply", "multiply", "times"), "Multiply two numbers", _NUMBERS, _arithmetic("product", "*")),
    Tool(("subtract", "minus"), "Subtract b from a", _NUMBERS, _arithmetic("difference", "-")),
    SEARCH,
    Tool(("translate",), "Translate a text", {"text": "string", "language": "string"}, _translate),
    Tool(
        ("send_message", "send_mail", "send_email"),
        "Send a message to a person",
        {"to": "string", "text": "string"},
        _mail,
    ),
    Tool(("set_reminder", "remind"), "Set a reminder", {"text": "string", "minutes": "integer"}, _remind),
    Tool(
        ("create_instance", "start_model"),
        "Start an instance of a model",
        {"model_name": "string"},
        _instance,
    ),
)
KNOWN = (WEATHER, WEATHER, TIME, ADD, SEARCH)  # the tools that people try first
