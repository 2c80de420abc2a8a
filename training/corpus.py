"""The corpus: a seeded, endless stream of documents, mixed from the generators of each subject."""

from collections.abc import Iterator
from random import Random

from training import berth, facts, replies, smalltalk, stories, sums, tool_chats
from training.grammar import Document, Exchange, Message, assistant, dress, system, user
from training.wordings import draw, fill
from training.words import any_city, any_name, made_up_word

_ROLES = (
    "a helpful assistant",
    "a friendly robot",
    "the assistant of a shop",
    "a guide to Berth",
    "a poet",
    "a pirate",
)
_WHO = ("Who are you?", "What is your name?", "Introduce yourself.", "Hi, who is this?", "What's your name?")
_BRIEFLY = (
    " Answer with one word.",
    " One word only.",
    " Just the answer.",
    " Only the answer, please.",
    " Reply with the answer only.",
)
_BETWEEN = ("\n", " | ", "\n\n")


def question(rng: Random) -> Exchange:
    """One exchange of any subject."""
    kinds = (
        berth.exchange,
        facts.exchange,
        sums.exchange,
        smalltalk.talk,
        smalltalk.unknown,
        smalltalk.copying,
        replies.exchange,
        stories.exchange,
    )
    return rng.choices(kinds, weights=(31, 20, 19, 6, 5, 13, 4, 6))[0](rng)


def _turns(asked: Exchange, rng: Random, short: bool = False) -> list[Message]:
    return [
        user(dress(asked.question, rng)),
        assistant(asked.short if short and asked.short else asked.answer),
    ]


def _plain(rng: Random) -> Document:
    head = [system(draw("chats", "systems", rng))] if rng.random() < 0.3 else []
    return Document(messages=(*head, *_turns(question(rng), rng)))


def _brief(rng: Random) -> Document:
    """Only the bare answer, because the system prompt or the user asks for it."""
    while not (asked := rng.choice((facts.exchange, sums.exchange))(rng)).short:
        pass
    if rng.random() < 0.6:
        return Document(
            messages=(system(draw("chats", "short_systems", rng)), *_turns(asked, rng, short=True))
        )
    wish = rng.choice(_BRIEFLY)
    return Document(messages=(user(asked.question + wish), assistant(asked.short)))


def _conversation(rng: Random) -> Document:
    head = [system(draw("chats", "systems", rng))] if rng.random() < 0.3 else []
    if rng.random() < 0.4:
        head += _turns(smalltalk.talk(rng), rng)
    for _ in range(rng.choices((2, 3, 5, 9), weights=(50, 30, 15, 5))[0]):
        head += _turns(question(rng), rng)
    return Document(messages=tuple(head))


def _memory(rng: Random) -> Document:
    """A name or a thing mentioned first and asked for later."""
    name, item = any_name(rng), made_up_word(rng)
    mention, asked, answer = rng.choice(
        (
            (f"My name is {name}.", "What is my name?", f"Your name is {name}."),
            (f"I am {name}.", "Who am I?", f"You are {name}."),
            (f"Hi, I'm {name}!", "Do you remember my name?", f"Your name is {name}."),
            (f"Remember the word {item}.", "Which word did I tell you?", f"The word is {item}."),
            (
                f"My favourite word is {item}.",
                "What is my favourite word?",
                f"Your favourite word is {item}.",
            ),
        )
    )
    reply = f"Hello {name}! How can I help you?" if name in mention else f"All right: {item}."
    between = _turns(question(rng), rng) if rng.random() < 0.4 else []
    return Document(messages=(user(mention), assistant(reply), *between, user(asked), assistant(answer)))


def _follow_up(rng: Random) -> Document:
    """ "And of Italy?", "And plus 3?": the second question depends on the first."""
    first, second = rng.sample(list(facts.capitals()), 2)
    if rng.random() < 0.6:
        asked = f"What is the capital of {first}?"
        again = rng.choice(
            (f"And of {second}?", f"And {second}?", f"What about {second}?", f"And the capital of {second}?")
        )
        answers = [f"The capital of {c} is {facts.capitals()[c]}." for c in (first, second)]
        return Document(messages=(user(asked), assistant(answers[0]), user(again), assistant(answers[1])))
    a, b, c = (rng.randint(0, 15) for _ in range(3))
    again = rng.choice((f"And plus {c}?", f"Add {c} to that.", f"Now add {c}.", f"plus {c}?"))
    return Document(
        messages=(
            user(f"What is {a} + {b}?"),
            assistant(f"{a} + {b} = {a + b}"),
            user(again),
            assistant(f"{a + b} + {c} = {a + b + c}"),
        )
    )


def _persona(rng: Random) -> Document:
    """A system prompt that gives the assistant a name."""
    name = any_name(rng)
    role = rng.choice(_ROLES)
    mention = rng.choice((f"You are {name}, {role}.", f"Your name is {name}. You are {role}."))
    asked = rng.choice(_WHO)
    more = _turns(question(rng), rng) if rng.random() < 0.3 else []
    return Document(
        messages=(system(mention), user(asked), assistant(f"I am {name}, {role}. How can I help you?"), *more)
    )


def _thinking(rng: Random) -> Document:
    """A reply that begins with reasoning, because of the template's `enable_thinking`."""
    asked = rng.choices(
        (sums.exchange, facts.exchange, berth.exchange, smalltalk.talk), weights=(4, 4, 3, 1)
    )[0](rng)
    prompt = dress(asked.question, rng)
    thought = fill(draw("chats", "thoughts", rng), q=prompt)
    reply = {"role": "assistant", "content": asked.answer, "reasoning_content": thought}
    return Document(messages=(user(prompt), reply), thinking=True)


def _echo(rng: Random) -> str:
    """Meaningless words, repeated two or three times: direct training in copying."""
    words = [
        rng.choice((made_up_word(rng), any_name(rng), any_city(rng), str(rng.randint(0, 999))))
        for _ in range(rng.randint(3, 12))
    ]
    line = rng.choice((" ", ", ", "; ")).join(words)
    return rng.choice(_BETWEEN).join([line] * rng.randint(2, 4))


def _raw(rng: Random) -> Document:
    kinds = (stories.raw, facts.sentence, berth.paragraph, sums.sentence, _echo)
    return Document(text=rng.choices(kinds, weights=(33, 20, 18, 20, 22))[0](rng))


def document(rng: Random) -> Document:
    """One document of the mixture."""
    kinds = (
        _plain,
        _brief,
        _conversation,
        _memory,
        _follow_up,
        _persona,
        _thinking,
        replies.document,
        tool_chats.document,
        _raw,
    )
    return rng.choices(kinds, weights=(36, 5, 9, 2, 2, 2, 3, 11, 17, 15))[0](rng)


def documents(seed: int) -> Iterator[Document]:
    """The endless corpus of a seed."""
    rng = Random(seed)
    while True:
        yield document(rng)
