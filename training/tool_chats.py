"""Chats with tools in the Hermes format: a call, its result put into words, or no call if none fits."""

import json
from random import Random

from training import facts, smalltalk, stories
from training.grammar import Document, Exchange, JsonObject, Message, assistant, dress, shuffled, system, user
from training.tools import KNOWN, TIME, TOOLS, WEATHER, Arguments, Call, Tool
from training.wordings import say
from training.words import any_city, any_name, made_up_word

_CITY_KEYS = ("city", "city", "city", "city", "location", "location", "place", "town")
_SYSTEMS = ("You are a helpful assistant.", "Use the tools where they help.", "You can call tools.")
_Drawn = tuple[str, JsonObject, Call]  # the tool's name, its signature and its use


def _invent_tool(rng: Random) -> _Drawn:
    """An invented tool, which the question paraphrases."""
    verb = rng.choice(("get", "find", "open", "set", "make", "check"))
    noun, key = made_up_word(rng), made_up_word(rng)
    name, value = f"{verb}_{noun}", rng.choice((made_up_word(rng), any_name(rng), any_city(rng)))
    question = say("tools", "invented", rng, verb=verb, Verb=verb.capitalize(), noun=noun, value=value)
    signature = _signature(name, f"{verb.capitalize()} the {noun}", {key: "string"}, rng)
    return name, signature, Call(question, {key: value}, {"ok": True}, "Done.")


def _signature(name: str, description: str, parameters: dict[str, str], rng: Random) -> JsonObject:
    described = rng.random() < 0.35
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    if described:
        for key, value in properties.items():
            value["description"] = f"The {key}"
    schema: JsonObject = {"type": "object", "properties": properties}
    if rng.random() < 0.7:
        schema["required"] = list(parameters)
    function: JsonObject = {"name": name, "description": description, "parameters": schema}
    if rng.random() < 0.12:
        del function["description"]
    return {"type": "function", "function": function}


def _draw(tool: Tool, rng: Random) -> _Drawn:
    name, call, parameters = rng.choice(tool.names), tool.use(rng), tool.parameters
    if "city" in parameters:
        key = rng.choice(_CITY_KEYS)
        parameters = {key: "string"}
        call = Call(call.question, {key: call.arguments["city"]}, call.result, call.answer)
    return name, _signature(name, tool.description, parameters, rng), call


def _call_message(name: str, *calls: Arguments) -> Message:
    made = [{"type": "function", "function": {"name": name, "arguments": arguments}} for arguments in calls]
    return {"role": "assistant", "content": "", "tool_calls": made}


def _parallel(rng: Random) -> Document:
    """Two cities in one question, two calls in one reply."""
    tool = rng.choice((WEATHER, TIME))
    first, second = any_city(rng), any_city(rng)
    name, noun = rng.choice(tool.names), "weather" if tool is WEATHER else "time"
    slots = {"noun": noun, "Noun": noun.capitalize(), "first": first, "second": second}
    asked = say("tools", "parallel", rng, **slots)
    reply = _call_message(name, {"city": first}, {"city": second})
    signature = _signature(name, tool.description, tool.parameters, rng)
    return Document(messages=(user(asked), reply), tools=(signature,))


def _without_call(rng: Random) -> Exchange:
    kinds = (smalltalk.talk, facts.capital, facts.general, smalltalk.talk, stories.exchange)
    return rng.choices(kinds, weights=(4, 3, 3, 2, 1))[0](rng)


def _some_tools(rng: Random) -> list[Tool]:
    """One to four different tools; the first, which is called, is often one of the most common."""
    count = rng.choices((1, 2, 3, 4), weights=(35, 35, 20, 10))[0]
    first = rng.choice(KNOWN if rng.random() < 0.5 else TOOLS)
    return [first, *rng.sample([tool for tool in TOOLS if tool is not first], count - 1)]


def document(rng: Random) -> Document:
    """A chat with one to four tools: a call, perhaps its result and the answer, or no call at all."""
    if rng.random() < 0.06:
        return _parallel(rng)
    drawn = [_draw(tool, rng) for tool in _some_tools(rng)]
    if rng.random() < 0.2:
        drawn[0] = _invent_tool(rng)
    signatures = tuple(signature for _, signature, _ in shuffled(drawn, rng))
    head = [system(rng.choice(_SYSTEMS))] if rng.random() < 0.25 else []
    if rng.random() < 0.18:
        talked = _without_call(rng)
        messages = [*head, user(dress(talked.question, rng)), assistant(talked.answer)]
    else:
        messages = [*head, *_called(drawn, rng)]
    return Document(messages=tuple(messages), tools=signatures)


def _called(drawn: list[_Drawn], rng: Random) -> list[Message]:
    """The first tool's call; then possibly its result and answer, and then possibly another call."""
    name, _, call = drawn[0]
    question = dress(call.question, rng) if rng.random() < 0.75 else call.question
    messages = [user(question), _call_message(name, call.arguments)]
    if rng.random() < 0.5:
        messages += _answered(call, rng)
        if rng.random() < 0.25:
            name, _, again = drawn[min(1, len(drawn) - 1)]
            messages += [user(again.question), _call_message(name, again.arguments)]
    return messages


def _answered(call: Call, rng: Random) -> list[Message]:
    """The result, as JSON or bare, and the answer that follows from it."""
    in_json = rng.random() < 0.8
    result = json.dumps(call.result) if in_json else str(next(iter(call.result.values())))
    answer = call.answer
    if not in_json and "sky" in call.result:
        city = next(iter(call.arguments.values()))
        answer = f"It is {call.result['temperature']} degrees in {city}."
    return [{"role": "tool", "content": result}, assistant(answer)]
