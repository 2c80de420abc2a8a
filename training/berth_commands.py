"""How to use Berth: requests, curl and the command line, with the model or id copied from the question."""

from random import Random

from training.grammar import Exchange
from training.wordings import expand, fill, subject
from training.words import MODELS, made_up_word

BASE = "http://localhost:5000"


def instance_id(rng: Random) -> str:
    """An id in one of the usual forms: hex, a number, a name."""
    kind = rng.random()
    if kind < 0.4:
        return f"{rng.getrandbits(24):06x}"
    if kind < 0.6:
        return f"{made_up_word(rng)}-{rng.randint(1, 9)}"
    return made_up_word(rng) if kind < 0.8 else f"inst-{rng.randint(1, 99)}"


def _model(rng: Random) -> str:
    if rng.random() < 0.35:
        return rng.choice(MODELS)
    owner, name = made_up_word(rng), made_up_word(rng)
    return f"{owner}/{name.capitalize() if rng.random() < 0.5 else name}-{rng.randint(1, 70)}B"


def exchange(rng: Random) -> Exchange:
    """A how-to question and its command."""
    commands = subject("commands")
    command = rng.choice(commands["model"] if rng.random() < 0.5 else commands["id"])
    task = rng.choice(command["ask"])
    whole = task.startswith("=")
    asked = expand(task[1:] if whole else f"{commands['how']} {task}?", rng)
    model = _model(rng) if "{m}" in asked else "berth-demo"
    identity = instance_id(rng) if "{i}" in asked else "{id}"
    answer = fill(command["answer"], m=model, i=identity, b=BASE)
    return Exchange(fill(asked, m=model, i=identity), answer)
