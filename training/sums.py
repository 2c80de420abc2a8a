"""Sums and small number questions: every sum of 0 to 20, many two-digit ones, tables, counting, comparing."""

from random import Random

from training.grammar import Exchange
from training.wordings import fill, say
from training.words import ANIMALS, FRUITS, THINGS, any_name

_SPOKEN = (
    *(
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)


def _ask(expression: str, rng: Random) -> str:
    return say("sums", "ask", rng, sum=expression)


def _pair(rng: Random) -> tuple[int, int]:
    if rng.random() < 0.6:
        return rng.randint(0, 20), rng.randint(0, 20)
    return rng.randint(0, 99), rng.randint(0, 99)


def _spoken(number: int, rng: Random) -> str:
    return _SPOKEN[number] if number <= 20 and rng.random() < 0.12 else str(number)


def _expression(form: str, a: int, b: int, rng: Random) -> str:
    said = say("sums", form, rng)
    return fill(said, a=_spoken(a, rng), b=_spoken(b, rng))


def addition(rng: Random) -> Exchange:
    """a + b."""
    a, b = _pair(rng)
    if rng.random() < 0.08:
        question = say("sums", "add_orders", rng, a=a, b=b)
    else:
        question = _ask(_expression("add", a, b, rng), rng)
    return Exchange(question, f"{a} + {b} = {a + b}", str(a + b))


def subtraction(rng: Random) -> Exchange:
    """a - b, mostly not below zero."""
    a, b = _pair(rng)
    if a < b and rng.random() < 0.85:
        a, b = b, a
    if rng.random() < 0.15:
        question = say("sums", "sub_orders", rng, a=a, b=b)
    else:
        question = _ask(_expression("sub", a, b, rng), rng)
    return Exchange(question, f"{a} - {b} = {a - b}", str(a - b))


def multiplication(rng: Random) -> Exchange:
    """The tables up to ten."""
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    return Exchange(_ask(_expression("mul", a, b, rng), rng), f"{a} * {b} = {a * b}", str(a * b))


def word_problem(rng: Random) -> Exchange:
    """Apples and coins, with the sum as the answer."""
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    noun, name = rng.choice((*FRUITS, *THINGS, *ANIMALS)), any_name(rng)
    if rng.random() < 0.6:
        question = say("sums", "more", rng, name=name, noun=noun, a=a, b=b)
        return Exchange(question, f"{a} + {b} = {a + b}, so there are {a + b} {noun}s.", str(a + b))
    a, b = max(a, b), min(a, b)
    question = say("sums", "fewer", rng, name=name, noun=noun, a=a, b=b)
    return Exchange(question, f"{a} - {b} = {a - b}, so {a - b} {noun}s are left.", str(a - b))


def comparison(rng: Random) -> Exchange:
    """The larger or the smaller of two."""
    a, b = rng.sample(range(100), 2)
    large = rng.random() < 0.5
    word = rng.choice(("larger", "bigger", "greater", "more") if large else ("smaller", "less"))
    best = max(a, b) if large else min(a, b)
    question = say("sums", "compare", rng, word=word, a=a, b=b)
    return Exchange(question, f"{best} is {word}.", str(best))


def counting(rng: Random) -> Exchange:
    """Count up or down."""
    start, length = rng.choice((1, 1, 1, 0, rng.randint(2, 40))), rng.randint(3, 14)
    end = start + length
    down = rng.random() < 0.25
    numbers = list(range(start, end + 1))
    first, last = (end, start) if down else (start, end)
    if down:
        numbers.reverse()
    form = "count_up" if first == 1 and rng.random() < 0.5 else "count"
    return Exchange(say("sums", form, rng, first=first, last=last), ", ".join(map(str, numbers)) + ".")


def neighbour(rng: Random) -> Exchange:
    """The number after, before, double or half."""
    n = rng.randint(1, 60)
    form, result, answer = rng.choice(
        (
            ("after", n + 1, f"After {n} comes {n + 1}."),
            ("before", n - 1, f"Before {n} comes {n - 1}."),
            ("twice", 2 * n, f"Twice {n} is {2 * n}."),
            ("half", n, f"Half of {2 * n} is {n}."),
        )
    )
    return Exchange(say("sums", form, rng, n=n, m=2 * n), answer, str(result))


def exchange(rng: Random) -> Exchange:
    """Any of the above, sums first."""
    kinds = (addition, subtraction, multiplication, word_problem, comparison, counting, neighbour)
    return rng.choices(kinds, weights=(45, 22, 8, 8, 4, 8, 5))[0](rng)


def sentence(rng: Random) -> str:
    """Raw text: a line of sums or a counted row."""
    if rng.random() < 0.7:
        drawn = [rng.choice((addition, subtraction))(rng).answer for _ in range(rng.randint(4, 12))]
        return rng.choice(("\n", ", ", "; ")).join(drawn)
    start = rng.choice((1, 1, rng.randint(1, 50)))
    return rng.choice((", ", " ")).join(str(n) for n in range(start, start + rng.randint(8, 25)))
