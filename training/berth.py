"""Questions and answers about Berth, and paragraphs about it to continue.

The facts are those of the design; wordings/berth.toml contains them with their wordings.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

from training import berth_commands
from training.grammar import Exchange, casual
from training.wordings import expand, pick, say, subject


def settings() -> dict[str, dict[str, Any]]:
    """Each setting's default ("" if there is none), meaning and common name."""
    return dict(subject("berth")["settings"])


def _setting(rng: Random) -> Exchange:
    name = rng.choice(list(settings()))
    setting = settings()[name]
    default, meaning = setting["default"], setting["meaning"]
    form = rng.random()
    if form < 0.4:
        about = f"{name} sets {meaning}." + (f" The default is {default}." if default else "")
        return Exchange(say("berth", "of_name", rng, name=name) + "?", about)
    if form < 0.7 and default:
        called = rng.choice((name, name, *subject("berth")["default_of"].get(name, ())))
        question = say("berth", "of_default", rng, name=called) + "?"
        return Exchange(question, f"{name} is {default} by default.", default)
    subjects = setting["subjects"]
    called = rng.choice((meaning.split(";")[0].split(":")[0], *subjects, *subjects))
    question = say("berth", "of_subject", rng, name=called) + "?"
    return Exchange(question, f"Set {name} in .env. It sets {meaning}.", name)


def _no_setting(rng: Random) -> Exchange:
    """A question about a setting that doesn't exist, so that the model doesn't make one up."""
    form = subject("berth")["no_setting"]
    words = rng.sample(form["words"], rng.choice((2, 2, 3)))
    name = "_".join(words).upper()
    if name in settings():
        return _setting(rng)
    if rng.random() < 0.6:
        question = say("berth", "of_name", rng, name=name)
        return Exchange(f"{question}?", f"Berth has no setting {name}; docs/settings.md lists them all.")
    question = say("berth", "of_subject", rng, name=" ".join(words))
    return Exchange(f"{question}?", form["answer"])


def _topic(topics: Sequence[dict[str, Any]], rng: Random) -> Exchange:
    topic = rng.choice(topics)
    return casual(Exchange(pick(topic["ask"], rng).rstrip("?") + "?", topic["answer"]), rng)


def exchange(rng: Random) -> Exchange:
    """A question about Berth: what it is, its life cycle, its traffic, a setting or a command."""
    texts = subject("berth")
    kind = rng.random()
    if kind < 0.1:
        return _topic(texts["about"][:1], rng)
    if kind < 0.28:
        return _topic(texts["about"], rng)
    if kind < 0.62:
        return _topic(texts["life"] + texts["traffic"], rng)
    if kind < 0.78:
        return _no_setting(rng) if rng.random() < 0.2 else _setting(rng)
    return berth_commands.exchange(rng)


def paragraph(rng: Random) -> str:
    """Raw text: a few true sentences about Berth."""
    texts = subject("berth")
    first = rng.choice((*texts["leads"], texts["about"][0]["answer"]))
    topics = texts["about"][:-3] + texts["life"] + texts["traffic"][:4]
    drawn = rng.sample([topic["answer"] for topic in topics], rng.randint(1, 3))
    kept = [answer for answer in drawn if answer != first and not answer.startswith(("Yes", "No"))]
    return " ".join([first, *kept]) if rng.random() < 0.7 else expand(_setting(rng).answer, rng)
