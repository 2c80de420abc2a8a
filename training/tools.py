"""Tool calls in the Hermes form: varied signatures, arguments copied from the question, results put into words."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from training import facts, smalltalk, stories, sums
from training.grammar import Document, Exchange, JsonObject, Message, assistant, dress, pick, shuffled, system, user
from training.words import FRUITS, THINGS, any_city, any_name, made_up_word

Arguments = dict[str, object]


@dataclass(frozen=True)
class Call:
    """One tool's use: the question, the arguments in it, a result and the answer made of the result."""

    question: str
    arguments: Arguments
    result: JsonObject
    answer: str


@dataclass(frozen=True)
class Tool:
    """A tool under several names, with its parameters and a maker of uses."""

    names: tuple[str, ...]
    description: str
    parameters: dict[str, str]
    use: Callable[[Random], Call]


def _weather(rng: Random) -> Call:
    city, degrees, sky = any_city(rng), rng.randint(-9, 38), rng.choice(("sunny", "rainy", "cloudy", "windy", "snowy", "foggy"))
    forms = ("[What is|What's|How is|How's] the weather [like|] in {c}[ today| now|]?", "[Weather in|The weather in] {c}[?|, please]", "[Is it|Will it be] [warm|cold|raining|sunny|hot] in {c}?", "Tell me the weather [in|for|of] {c}.", "[Check|Look up|Get|Find|Show me] the [weather|temperature|forecast] [in|for] {c}.", "How [warm|cold|hot] is it in {c}?", "[What is|What's] the [temperature|forecast] [in|for] {c}?", "[I want to know|I wonder about|I need|Do you know] the weather [in|of] {c}[.|?]", "[Can you|Could you|Please] [check|tell me|look up|find out] [the weather|how the weather is|how warm it is] in {c}[?| now?]", "I am [going|travelling] to {c}. How is the weather [there|]?", "Do I need [an umbrella|a coat] in {c}?")
    return Call(pick(forms, rng).replace("{c}", city), {"city": city}, {"temperature": degrees, "sky": sky}, f"It is {sky} in {city}, at {degrees} degrees.")


def _time(rng: Random) -> Call:
    city, clock = any_city(rng), f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    forms = ("What time is it in {c}[ now|]?", "[What is|What's|Tell me|Check|Get|Give me] the [time|local time|current time] in {c}.", "Time in {c}?", "How late is it in {c}?", "[Which time|What hour] is it in {c}?", "[I need|I want to know|Do you know] the [time|local time] [in|of] {c}[.|?]", "What does the clock say in {c}?")
    return Call(pick(forms, rng).replace("{c}", city), {"city": city}, {"time": clock}, f"It is {clock} in {city}.")


def _arithmetic(word: str, sign: str, forms: tuple[str, ...]) -> Callable[[Random], Call]:
    def use(rng: Random) -> Call:
        top = rng.choice((20, 100, 1000, 9999))
        a, b = rng.randint(0, top), rng.randint(0, top)
        result = {"+": a + b, "-": a - b, "*": a * b}[sign]
        question = pick(forms, rng).replace("{a}", str(a)).replace("{b}", str(b))
        return Call(question, {"a": a, "b": b}, {word: result}, f"{a} {sign} {b} = {result}")

    return use


def _search(rng: Random) -> Call:
    query = rng.choice((f"{rng.choice(FRUITS)} {rng.choice(('cake', 'soup', 'recipes', 'prices'))}", f"{made_up_word(rng)} {made_up_word(rng)}", f"{any_city(rng)} {rng.choice(('hotels', 'trains', 'museums', 'news'))}", made_up_word(rng), f"{rng.choice(THINGS)} {rng.choice(('shop', 'repair', 'history'))}"))
    forms = ("[Search for|Search|Look up|Find|Google|Search the web for|Find pages about|Please search for|Can you look up] {q}.", "[What can you find about|Search results for|Find information about|I need information about] {q}")
    title = f"All about {query}"
    return Call(pick(forms, rng).replace("{q}", query), {"query": query}, {"results": [title]}, f"I found this: {title}.")


def _translate(rng: Random) -> Call:
    text, language = smalltalk.any_sentence(rng), rng.choice(("French", "German", "Spanish", "Italian", "Polish", "Latin"))
    forms = ("Translate \"{t}\" [into|to] {l}.", "[Say|How do you say] \"{t}\" in {l}?", "[What is|What's] \"{t}\" in {l}?")
    said = pick(forms, rng).replace("{t}", text).replace("{l}", language)
    result = made_up_word(rng)
    return Call(said, {"text": text, "language": language}, {"translation": result}, f"In {language} it is: {result}")


def _mail(rng: Random) -> Call:
    to, text = any_name(rng), smalltalk.any_sentence(rng)
    forms = ("[Send|Write] [a message|a mail|an email] to {n}[ saying|:] \"{t}\"", "[Tell|Message|Write] {n}: \"{t}\"", "Send \"{t}\" to {n}.")
    return Call(pick(forms, rng).replace("{n}", to).replace("{t}", text), {"to": to, "text": text}, {"sent": True}, f"The message to {to} is sent.")


def _remind(rng: Random) -> Call:
    minutes, text = rng.randint(1, 90), f"{rng.choice(('buy', 'call', 'find', 'wash', 'sell'))} {rng.choice((any_name(rng), made_up_word(rng), rng.choice(THINGS)))}"
    forms = ("Remind me [in {m} minutes to {t}|to {t} in {m} minutes].", "[Set|Make] a reminder in {m} minutes: {t}")
    return Call(pick(forms, rng).replace("{m}", str(minutes)).replace("{t}", text), {"text": text, "minutes": minutes}, {"ok": True}, f"I will remind you in {minutes} minutes to {text}.")


def _instance(rng: Random) -> Call:
    model = rng.choice(("berth-demo", "Qwen/Qwen3-0.6B", f"{made_up_word(rng)}/{made_up_word(rng)}-{rng.randint(1, 9)}B"))
    forms = ("[Start|Create|Launch|Run] [an instance of|the model|an engine for|] {m}.", "[I need|Please start|Bring up] {m}.")
    return Call(pick(forms, rng).replace("{m}", model), {"model_name": model}, {"status": "starting"}, f"The instance of {model} is starting.")


TOOLS = (
    Tool(("get_weather", "get_weather", "get_weather", "weather", "get_current_weather", "current_weather"), "Get the weather of a city", {"city": "string"}, _weather),
    Tool(("get_time", "get_time", "current_time", "clock"), "Get the time in a city", {"city": "string"}, _time),
    Tool(("add", "add", "add_numbers"), "Add two numbers", {"a": "integer", "b": "integer"}, _arithmetic("sum", "+", ("[What is|Add|Compute|Calculate] {a} + {b}[?|]", "Add {a} and {b}.", "[Please|Can you|Could you|Use the tool to] [add|sum|sum up] {a} and {b}[?|.|]", "What is {a} plus {b}?", "[Sum|The sum] of {a} and {b}?"))),
    Tool(("multiply", "multiply", "times"), "Multiply two numbers", {"a": "integer", "b": "integer"}, _arithmetic("product", "*", ("[What is|Multiply|Compute|Calculate] {a} * {b}[?|]", "Multiply {a} [by|and|with] {b}.", "What is {a} times {b}?"))),
    Tool(("subtract", "minus"), "Subtract b from a", {"a": "integer", "b": "integer"}, _arithmetic("difference", "-", ("[What is|Compute|Calculate] {a} - {b}[?|]", "What is {a} minus {b}?"))),
    Tool(("search", "search", "web_search", "search_web"), "Search the web", {"query": "string"}, _search),
    Tool(("translate",), "Translate a text", {"text": "string", "language": "string"}, _translate),
    Tool(("send_message", "send_mail", "send_email"), "Send a message to a person", {"to": "string", "text": "string"}, _mail),
    Tool(("set_reminder", "remind"), "Set a reminder", {"text": "string", "minutes": "integer"}, _remind),
    Tool(("create_instance", "start_model"), "Start an instance of a model", {"model_name": "string"}, _instance),
)  # fmt: skip
_CITY_KEYS = ("city", "city", "city", "city", "location", "location", "place", "town")


def _invent_tool(rng: Random) -> tuple[str, JsonObject, Call]:
    """A tool nobody knows, whose name and parameter stand in the question."""
    verb, noun, key = rng.choice(("get", "find", "open", "set", "make", "check")), made_up_word(rng), made_up_word(rng)
    name, value = f"{verb}_{noun}", rng.choice((made_up_word(rng), any_name(rng), any_city(rng)))
    call = Call(pick((f"{verb.capitalize()} the {noun} [of|for|with] {value}.", f"[Please|Can you] {verb} the {noun} [of|for] {value}?"), rng), {key: value}, {"ok": True}, "Done.")
    return name, _signature(name, f"{verb.capitalize()} the {noun}", {key: "string"}, rng), call


def _signature(name: str, description: str, parameters: dict[str, str], rng: Random) -> JsonObject:
    described = rng.random() < 0.35
    properties = {key: {"type": kind, "description": f"The {key}"} if described else {"type": kind} for key, kind in parameters.items()}
    schema: JsonObject = {"type": "object", "properties": properties}
    if rng.random() < 0.7:
        schema["required"] = list(parameters)
    function: JsonObject = {"name": name, "description": description, "parameters": schema}
    if rng.random() < 0.12:
        del function["description"]
    return {"type": "function", "function": function}


def _draw(tool: Tool, rng: Random) -> tuple[str, JsonObject, Call]:
    name, call, parameters = rng.choice(tool.names), tool.use(rng), tool.parameters
    if "city" in parameters:
        key = rng.choice(_CITY_KEYS)
        parameters, call = {key: "string"}, Call(call.question, {key: call.arguments["city"]}, call.result, call.answer)
    return name, _signature(name, tool.description, parameters, rng), call


def _call_message(name: str, arguments: Arguments) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}]}


def _parallel(rng: Random) -> Document:
    """Two cities in one question, two calls in one reply."""
    tool = rng.choice(TOOLS[:2])
    first, second = any_city(rng), any_city(rng)
    name, noun = rng.choice(tool.names), "weather" if tool is TOOLS[0] else "time"
    asked = pick((f"[What is|What's|Tell me|Compare|Check|Get] the {noun} in {first} and [in|] {second}[?|.]", f"{noun.capitalize()} in {first} and {second}?"), rng)
    both = [_call_message(name, {"city": city})["tool_calls"][0] for city in (first, second)]
    reply: Message = {"role": "assistant", "content": "", "tool_calls": both}
    return Document(messages=(user(asked), reply), tools=(_signature(name, tool.description, tool.parameters, rng),))


def _without_call(rng: Random) -> Exchange:
    kinds = (smalltalk.talk, facts.capital, facts.general, smalltalk.talk, stories.exchange)
    return rng.choices(kinds, weights=(4, 3, 3, 2, 1))[0](rng)


def document(rng: Random) -> Document:
    """A chat with one to four tools: a call, perhaps its result and the answer, or no call where none fits."""
    if rng.random() < 0.06:
        return _parallel(rng)
    drawn = [_draw(tool, rng) for tool in rng.sample(TOOLS, rng.choices((1, 2, 3, 4), weights=(35, 35, 20, 10))[0])]
    if rng.random() < 0.2:
        drawn[0] = _invent_tool(rng)
    name, _, call = drawn[0]
    signatures = tuple(signature for _, signature, _ in shuffled(drawn, rng))
    head = [system(rng.choice(("You are a helpful assistant.", "Use the tools where they help.", "You can call tools.")))] if rng.random() < 0.25 else []
    if rng.random() < 0.18:
        talked = _without_call(rng)
        return Document(messages=(*head, user(dress(talked.question, rng)), assistant(talked.answer)), tools=signatures)
    messages = [*head, user(dress(call.question, rng) if rng.random() < 0.5 else call.question), _call_message(name, call.arguments)]
    if rng.random() < 0.5:
        result = json.dumps(call.result) if rng.random() < 0.8 else str(next(iter(call.result.values())))
        answer = call.answer
        if not result.startswith("{") and "sky" in call.result:
            answer = f"It is {call.result['temperature']} degrees in {next(iter(call.arguments.values()))}."
        messages += [{"role": "tool", "content": result}, assistant(answer)]
        if rng.random() < 0.25:
            again = drawn[0][2] if len(drawn) < 2 else drawn[1][2]
            messages += [user(again.question), _call_message(drawn[0][0] if len(drawn) < 2 else drawn[1][0], again.arguments)]
    return Document(messages=tuple(messages), tools=signatures)

