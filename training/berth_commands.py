"""How Berth is driven: requests, curl and the command line, with the model or id copied from the question."""

from random import Random

from training.grammar import Exchange, expand
from training.words import MODELS, made_up_word

BASE = "http://localhost:5000"
HOW = "[How do I|How can I|How do you|How would I|How does one|How to|What is the way to|I want to|I need to|Show me how to|Explain how to|Can you show me how to|What is the command to|What is the curl command to|Give me a curl command to|Which command do I use to|Which request do I send to|Please help me to|Tell me how to|What do I do to|How should I|How might I|Is there a way to|Can you tell me how to|Which call is used to|What is the request to]"
Command = tuple[tuple[str, ...], str]

# {m}: a model's name, {i}: an instance's id; both are copied from the question where it names one.
_MODEL_COMMANDS: tuple[Command, ...] = (
    (("[create|start|launch|make|add|run|spawn|bring up|open|set up] [an instance|a new instance|an engine|a model|the model|one instance|my first instance|the demo model]",
      "[create|start|launch|run|serve|load|deploy|host] {m}", "[create|start|launch|make] an instance [of|for|with] {m}", "[start|run] the model {m}", "[get|bring] {m} [up|running]"),
     "Send POST /instances with the model's name:\ncurl -X POST {b}/instances -H 'Content-Type: application/json' -d '{\"model_name\": \"{m}\"}'"),
    (("[create an instance of|start|launch|run] {m} and wait [for it|until it runs|until it is ready]", "wait [for an instance|until an instance is running|for {m}|until {m} is ready]"),
     "Add ?wait=SECONDS; the answer comes when the instance is running or has failed:\ncurl -X POST '{b}/instances?wait=60' -H 'Content-Type: application/json' -d '{\"model_name\": \"{m}\"}'"),
    (("[ask|query|chat with|talk to|use|call|send a message to|send a chat request to] [a model|the model|{m}|{m}]", "[send|make] a chat [request|completion] [to {m}|]", "[send|make] a [request|prompt] to [{m}|a model]"),
     "Send POST /v1/chat/completions:\ncurl {b}/v1/chat/completions -H 'Content-Type: application/json' -d '{\"model\": \"{m}\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'"),
    (("[use|call|ask] {m} [from Python|in Python|with the openai client|with openai]", "use [Berth|the openai client] [from|in] Python"),
     "from openai import OpenAI\nclient = OpenAI(base_url=\"{b}/v1\", api_key=\"none\")\nanswer = client.chat.completions.create(model=\"{m}\", messages=[{\"role\": \"user\", \"content\": \"Hello\"}])\nprint(answer.choices[0].message.content)"),
)  # fmt: skip

_ID_COMMANDS: tuple[Command, ...] = (
    (("[list|see|show|get|view] [all|my|the|] [instances|engines|running instances]", "[find out|see] what is running", "[check|see] which [instances|models|engines] [run|are running]"),
     "Send GET /instances, or type berth ps:\ncurl {b}/instances"),
    (("[stop|shut down|halt] [an instance|the instance|an engine|my instance|a model]", "[stop|shut down|halt] [instance {i}|{i}]"), "Send POST /instances/{id}/stop:\ncurl -X POST {b}/instances/{i}/stop"),
    (("[delete|remove|get rid of|destroy] [an instance|the instance|an engine|my instance]", "[delete|remove|get rid of] [instance {i}|{i}]"),
     "Send DELETE /instances/{id}. It drains first; ?force=true does not:\ncurl -X DELETE {b}/instances/{i}"),
    (("[restart|reboot] [an instance|the instance|an engine|my instance]", "restart [instance {i}|{i}]"), "Send POST /instances/{id}/restart:\ncurl -X POST {b}/instances/{i}/restart"),
    (("[put an instance to sleep|make an instance sleep|free the memory of an instance|sleep an instance]", "[put [instance|] {i} to sleep|sleep [instance|] {i}]"),
     "Send POST /instances/{id}/sleep with a level:\ncurl -X POST '{b}/instances/{i}/sleep?level=1'"),
    (("[wake|wake up] [an instance|a sleeping instance|my instance|the engine]", "[wake|wake up] [instance|] {i}"), "Send POST /instances/{id}/wake; a request wakes it too:\ncurl -X POST {b}/instances/{i}/wake"),
    (("[see|read|get|show|find|view] the [log|logs|output] of [an instance|an engine|my engine|my instance]", "[see|read|get|follow] [the|] logs", "[see|read|get|show] the logs of [instance|] {i}"),
     "Send GET /instances/{id}/logs; follow=true streams them:\ncurl '{b}/instances/{i}/logs?tail=100'"),
    (("[see|get|show|check] the [state|status|details|record] of [an instance|my instance]", "[see|get|show|check] [instance|] {i}"), "Send GET /instances/{id}:\ncurl {b}/instances/{i}"),
    (("change the [timeout|idle timeout|time-out] of [an instance|my instance|a running instance]", "[give an instance a longer timeout|change the timeout of {i}]"),
     "Send PATCH /instances/{id} with a timeout in seconds; 0 means never:\ncurl -X PATCH {b}/instances/{i} -H 'Content-Type: application/json' -d '{\"timeout\": 3600}'"),
    (("[list|see|get|show] [the|all|] [models|available models]", "[find out|see] which models [I can ask for|are there|there are]"), "Send GET /v1/models:\ncurl {b}/v1/models"),
    (("[start|run|launch] Berth", "[start|launch] the [server|Berth server|program]", "[get started|begin] [with Berth|]", "[set up|install|try] Berth"),
     "Install the requirements, copy env.example to .env, and start Berth:\npip install -r requirements.txt\ncp env.example .env\npython app.py"),
    (("[configure|tune|set up|change] [Berth|the settings|settings|the configuration]", "change [a setting|the settings|the configuration]"),
     "Settings are in the file .env: copy env.example to .env and edit it. A wrong value stops the start with a line that names it."),
    (("[watch|follow|see|get] [the|] events", "be told [about|of] state changes", "[watch|follow] [state changes|what happens]"), "Send GET /events; it streams every transition, eviction and expiry:\ncurl -N {b}/events"),
    (("[send a request to|reach|call|talk to] [one|a certain|a given|a single|exactly one] instance", "[send a request to|reach|call|talk to] [instance|] {i}", "[use|call] the proxy"),
     "Use the proxy with the instance's id:\ncurl {b}/proxy/{i}/v1/models"),
    (("[check|see] [Berth's|the] version", "find [out|] the version [of Berth|]"), "Send GET /version:\ncurl {b}/version"),
    (("[check|see] [Berth's health|whether Berth is alive|whether Berth is well]",), "Send GET /health:\ncurl {b}/health"),
)  # fmt: skip


def instance_id(rng: Random) -> str:
    """An id of one of the shapes that people use: hex, a number, a name."""
    kind = rng.random()
    if kind < 0.4:
        return f"{rng.getrandbits(24):06x}"
    if kind < 0.6:
        return f"{made_up_word(rng)}-{rng.randint(1, 9)}"
    return made_up_word(rng) if kind < 0.8 else f"inst-{rng.randint(1, 99)}"


def _model(rng: Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(MODELS)
    return f"{made_up_word(rng)}/{made_up_word(rng).capitalize()}-{rng.randint(1, 70)}B"


def exchange(rng: Random) -> Exchange:
    """A how-to question and its command."""
    forms, answer = rng.choice(_MODEL_COMMANDS if rng.random() < 0.35 else _ID_COMMANDS)
    task = rng.choice(forms)
    named_model, named_id = "{m}" in task, "{i}" in task
    asked = expand(f"{HOW} {task}?", rng)
    model = _model(rng) if named_model and "{m}" in asked else "berth-demo"
    identity = instance_id(rng) if named_id and "{i}" in asked else "{id}"
    said = asked.replace("{m}", model).replace("{i}", identity)
    return Exchange(said, answer.replace("{m}", model).replace("{i}", identity).replace("{b}", BASE))
