"""Questions in wordings that the generators never produce, with checks of their answers.

They measure whether the model answers people rather than templates; a test checks that they stay unseen.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Check = Callable[[str], bool]


@dataclass(frozen=True)
class Probe:
    """One question (or raw start, without `chat`) and the check of its answer."""

    category: str
    prompt: str
    check: Check
    tools: tuple[dict[str, Any], ...] = ()
    system: str = ""
    chat: bool = True


def has(*words: str) -> Check:
    """All words occur, in any case."""
    return lambda answer: all(word.lower() in answer.lower() for word in words)


def number(value: int) -> Check:
    """The last number in the answer is the value."""
    return lambda answer: re.findall(r"-?\d+", answer)[-1:] == [str(value)]


def json_is(**fields: object) -> Check:
    """The answer is a JSON object with exactly these fields."""

    def check(answer: str) -> bool:
        try:
            return bool(json.loads(answer) == fields)
        except ValueError:
            return False

    return check


def calls(name: str, **arguments: object) -> Check:
    """The answer is one call of the named tool with these arguments."""

    def check(answer: str) -> bool:
        found = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", answer.strip(), re.DOTALL)
        try:
            return bool(found and json.loads(found.group(1)) == {"name": name, "arguments": arguments})
        except ValueError:
            return False

    return check


def tells(hero: str) -> Check:
    """A story of some length about the hero, ending with a sentence's end."""
    return lambda answer: hero in answer.lower() and answer.count(".") >= 4 and answer.rstrip()[-1:] in '."'


def tool(name: str, description: str, **parameters: str) -> dict[str, Any]:
    """A tool's signature."""
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


WEATHER = tool("get_weather", "Get the current weather for a city", city="string")
CLOCK = tool("get_time", "Tells the time of a city", city="string")
ADD = tool("add", "Adds two integers", a="integer", b="integer")
LOOKUP = tool("search", "Searches the internet", query="string")

_BERTH = (
    ("So what exactly is this Berth thing?", has("engine", "port")),
    ("In one sentence, what is Berth?", has("engine", "port")),
    ("Could you briefly explain Berth to a newcomer?", has("engine")),
    ("how would i go about creating an instance", has("curl -X POST", "/instances -H")),
    ("Show me the curl for launching acme/frog-2B", has("curl", "/instances", "acme/frog-2B")),
    ("How do I get rid of instance 7fd21a?", has("DELETE", "7fd21a")),
    ("Which port is used by Berth itself?", has("5000")),
    ("At which port do the engines begin?", has("9000")),
    ("After how much idle time is an engine shut down?", has("600")),
    ("What possible states does an instance go through?", has("health_checking", "sleeping")),
    ("How many instances at most?", has("20")),
    ("What's the default for VLLM_BASE_PORT?", has("9000")),
    ("Which env var changes the port of Berth?", has("APP_PORT")),
    ("Where can I read an engine's logs?", has("logs")),
    ("Is it possible to use it without any GPU?", has("CPU")),
    ("Could you tell me what a 429 response means?", has("queue")),
    ("How do I make an instance go to sleep?", has("sleep")),
    ("Explain to me how the proxy forwards things", has("/proxy/")),
)
_FACTS = (
    ("Can you name the capital of France for me?", has("Paris")),
    ("What's the name of Japan's capital city?", has("Tokyo")),
    ("I forgot: which city is Italy's capital?", has("Rome")),
    ("Which day comes right after Tuesday?", has("Wednesday")),
    ("Grass has which colour?", has("green")),
    ("How many legs would a spider have?", has("8")),
    ("Biggest planet of all?", has("Jupiter")),
    ("Say the opposite of hot.", has("cold")),
    ("Could you name three animals for me?", lambda a: a.count(",") + a.count(" and ") >= 2),
    ("What do we call a young dog?", has("puppy")),
)
_SUMS = (
    ("Could you tell me what 2 + 3 is?", number(5)),
    ("7 + 8 makes what?", number(15)),
    ("Add up 12 and 9 for me", number(21)),
    ("If I take 4 from 11, what remains?", number(7)),
    ("What would 34 + 25 be?", number(59)),
    ("please compute 47 + 38", number(85)),
    ("Subtract 6 from 19", number(13)),
    ("How much do 20 and 20 make together?", number(40)),
    ("i had 5 apples and got 3 more, how many now?", number(8)),
    ("What is 6 times 7, please?", number(42)),
)
_TALK = (
    ("Hello there, friend!", has("help")),
    ("And who might you be?", has("berth-demo")),
    ("Which things are you able to do for me?", has("stories")),
    ("thx a lot!", has("welcome")),
    ("Could you explain the theory of relativity?", has("don't know")),
    ("Who painted the Mona Lisa?", has("don't know")),
    ("Please say the words: green mip tandoro", has("green mip tandoro")),
    ("Can you repeat this for me: Kolf 88 runs", has("Kolf 88 runs")),
    ("count up from 3 to 8", has("3, 4, 5, 6, 7, 8")),
)
_STORIES = (
    ("Would you tell me a story about a fox?", tells("fox")),
    ("I'd love a short story about a robot!", tells("robot")),
    ("Make up a tale where a mouse is the hero", tells("mouse")),
    ("A bedtime story about a bear named Tullo, please", tells("tullo")),
)
_JSON = (
    ("Please reply in JSON with the keys name and age. Lena is 12 years old.", json_is(name="Lena", age=12)),
    ("JSON please, with the keys name and city: Gorvin lives in Oslo.", json_is(name="Gorvin", city="Oslo")),
    ("What is 4 + 5? Reply in JSON with the key result, nothing else.", json_is(result=9)),
    (
        "Give the capital of Spain in JSON with the keys country and capital.",
        json_is(country="Spain", capital="Madrid"),
    ),
    (
        "Put it in JSON with name, age and job: Ruvo is 45 and is a baker.",
        json_is(name="Ruvo", age=45, job="baker"),
    ),
)
_TOOLS = (
    (
        "Could you check how the weather is in Paris right now?",
        calls("get_weather", city="Paris"),
        (WEATHER,),
    ),
    ("I'm curious about the weather in Tromsund", calls("get_weather", city="Tromsund"), (WEATHER, CLOCK)),
    ("Berlin's temperature right now, please?", calls("get_weather", city="Berlin"), (CLOCK, WEATHER)),
    ("Do you happen to know the time in Lima?", calls("get_time", city="Lima"), (WEATHER, CLOCK)),
    ("Please add 17 and 25", calls("add", a=17, b=25), (ADD, LOOKUP)),
    ("Use the tool to add 310 and 42", calls("add", a=310, b=42), (ADD,)),
    ("Can you search the web for harbour maps?", calls("search", query="harbour maps"), (LOOKUP, WEATHER)),
    ("Hello there, friend!", has("help"), (WEATHER,)),
    ("Can you name the capital of France for me?", has("Paris"), (ADD, WEATHER)),
)
_RAW = (
    ("Once upon a time", lambda a: a.count(".") >= 3),
    ("The capital of France is", lambda a: a.strip().startswith("Paris")),
    ("The capital of Japan is", lambda a: a.strip().startswith("Tokyo")),
    ("Berth is", has(".")),
    ("1, 2, 3, 4,", lambda a: a.strip().startswith("5, 6, 7")),
    ("Once upon a time there was a little fox", has("fox")),
)


def probes() -> list[Probe]:
    """All held-out questions."""
    named = {
        "berth": _BERTH,
        "facts": _FACTS,
        "sums": _SUMS,
        "talk": _TALK,
        "stories": _STORIES,
        "json": _JSON,
    }
    chats = [Probe(category, prompt, check) for category, rows in named.items() for prompt, check in rows]
    with_tools = [Probe("tools", prompt, check, tools) for prompt, check, tools in _TOOLS]
    raw = [Probe("raw", prompt, check, chat=False) for prompt, check in _RAW]
    one_word = Probe(
        "facts",
        "Could you tell me the capital of Norway?",
        lambda a: a.strip(". ") == "Oslo",
        system="Answer with one word.",
    )
    in_json = Probe(
        "json", "What would 3 + 4 be?", json_is(answer=7), system="You only speak JSON. Reply in JSON."
    )
    return [*chats, one_word, in_json, *with_tools, *raw]
