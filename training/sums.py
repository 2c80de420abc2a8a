"""Sums and small number questions: every sum of 0 to 20, many two-digit ones, tables, counting, comparing."""

from random import Random

from training.grammar import Exchange, expand, pick
from training.words import ANIMALS, FRUITS, THINGS, any_name

WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
_ASK = (
    "What is {}?", "What's {}?", "What is {}?", "How much is {}?", "{}", "{} =", "{}?", "{} = ?", "Calculate {}.",
    "Compute {}", "[Please|] work out {}.", "What does {} [make|equal|give|come to]?", "Can you [compute|add up|do] {}?",
    "Solve {}", "What do you get for {}?", "Tell me [what {} is|the result of {}].", "[The result|Result] of {}?",
    "What is the [answer|result] [to|of] {}?", "Do you know {}?", "Do the math: {}", "How many is {}?", "{} [makes|is|gives|equals] [what|how much]?", "What [would|will|might] {} [be|give|make]?", "[I need|Give me|Find|Say] {}.", "[Please|Now|So] {}", "Use your head: {}", "[Compute|Calculate|Work out] {} [for me|please|now|quickly]",
)  # fmt: skip
_ADD_ORDERS = ("Add {a} [and|to|plus] {b}[.|]", "[Sum|Sum up|Add up|Add together] {a} and {b}[.|]", "[Can you|Please|Could you] add {a} and {b}?", "What do {a} and {b} make?", "How [much|many] are {a} and {b}?")
_SUB_ORDERS = ("[Take|Subtract|Remove] {b} from {a}[.|]", "[What is|What's] {b} [taken|subtracted] from {a}?", "[Start with|Begin with|From] {a} [and|] take [away|] {b}.", "What is left of {a} [after taking|without|minus] {b}?")
_ADD = ("{a} + {b}", "{a} + {b}", "{a} + {b}", "{a}+{b}", "{a} plus {b}", "the sum of {a} and {b}", "{a} and {b} [together|in all|]", "{b} more than {a}", "{a} added to {b}")
_SUB = ("{a} - {b}", "{a} - {b}", "{a}-{b}", "{a} minus {b}", "{a} take away {b}", "{b} less than {a}", "the difference of {a} and {b}")
_MUL = ("{a} * {b}", "{a} x {b}", "{a} times {b}", "{a}*{b}", "{a} multiplied by {b}")


def _ask(expression: str, rng: Random) -> str:
    return expand(rng.choice(_ASK), rng).replace("{}", expression)


def _pair(rng: Random) -> tuple[int, int]:
    if rng.random() < 0.6:
        return rng.randint(0, 20), rng.randint(0, 20)
    return rng.randint(0, 99), rng.randint(0, 99)


def _spoken(number: int, rng: Random) -> str:
    return WORDS[number] if number <= 20 and rng.random() < 0.12 else str(number)


def addition(rng: Random) -> Exchange:
    """a + b."""
    a, b = _pair(rng)
    if rng.random() < 0.08:
        question = pick(_ADD_ORDERS, rng).replace("{a}", str(a)).replace("{b}", str(b))
    else:
        question = _ask(pick(_ADD, rng).format(a=_spoken(a, rng), b=_spoken(b, rng)), rng)
    return Exchange(question, f"{a} + {b} = {a + b}", str(a + b))


def subtraction(rng: Random) -> Exchange:
    """a - b, mostly not below zero."""
    a, b = _pair(rng)
    if a < b and rng.random() < 0.85:
        a, b = b, a
    if rng.random() < 0.15:
        question = pick(_SUB_ORDERS, rng).replace("{a}", str(a)).replace("{b}", str(b))
    else:
        question = _ask(pick(_SUB, rng).format(a=_spoken(a, rng), b=_spoken(b, rng)), rng)
    return Exchange(question, f"{a} - {b} = {a - b}", str(a - b))


def multiplication(rng: Random) -> Exchange:
    """The tables up to ten."""
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    said = rng.choice(_MUL).format(a=_spoken(a, rng), b=_spoken(b, rng))
    return Exchange(_ask(said, rng), f"{a} * {b} = {a * b}", str(a * b))


def word_problem(rng: Random) -> Exchange:
    """Apples and coins, with the sum as the answer."""
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    noun, name = rng.choice((*FRUITS, *THINGS, *ANIMALS)), any_name(rng)
    plural = f"{noun}s"
    if rng.random() < 0.6:
        story = expand(
            f"[{name} has|I have|There are|We have] {a} {plural}[ and|.] [{name} buys|I get|I got|then we find|someone "
            f"brings|finds] {b} more. How many {plural} [are there now|is that|are there|in all]?", rng)  # fmt: skip
        return Exchange(story, f"{a} + {b} = {a + b}, so there are {a + b} {plural}.", str(a + b))
    a, b = max(a, b), min(a, b)
    story = expand(
        f"[{name} has|I have|There are] {a} {plural} [and|but] [gives away|loses|sells] {b}. "
        f"How many {plural} are [left|left over|still there]?", rng)  # fmt: skip
    return Exchange(story, f"{a} - {b} = {a - b}, so {a - b} {plural} are left.", str(a - b))


def comparison(rng: Random) -> Exchange:
    """The larger or the smaller of two."""
    a, b = rng.sample(range(100), 2)
    large = rng.random() < 0.5
    word = rng.choice(("larger", "bigger", "greater", "more") if large else ("smaller", "less"))
    best = max(a, b) if large else min(a, b)
    question = expand(f"[Which is {word}|What is {word}|Which number is {word}|Which one is {word}][:|,] {a} or {b}?", rng)
    return Exchange(question, f"{best} is {word}.", str(best))


def counting(rng: Random) -> Exchange:
    """Count up, down or in steps."""
    start, length = rng.choice((1, 1, 1, 0, rng.randint(2, 40))), rng.randint(3, 14)
    end = start + length
    down = rng.random() < 0.25
    numbers = list(range(start, end + 1))
    first, last = (end, start) if down else (start, end)
    if down:
        numbers.reverse()
    to_forms = f"[Count|Please count|Can you count|Count for me|List the numbers] from {first} to {last}."
    question = f"[Count|Count up|Please count] to {last}." if first == 1 and rng.random() < 0.5 else to_forms
    return Exchange(expand(question, rng), ", ".join(map(str, numbers)) + ".")


def neighbour(rng: Random) -> Exchange:
    """The number after, before, double or half."""
    n = rng.randint(1, 60)
    forms = (
        (("What [number|] comes after {n}?", "Which number follows {n}?", "Next number after {n}?"), n + 1,
         "After {n} comes {r}."),
        (("What [number|] comes before {n}?", "Which number is before {n}?"), n - 1, "Before {n} comes {r}."),
        (("What is [twice {n}|double {n}|two times {n}|the double of {n}]?", "Double {n}."), 2 * n,
         "Twice {n} is {r}."),
        (("What is half of {m}?", "Half of {m}?", "What is {m} divided by 2?"), n, "Half of {m} is {r}."),
    )  # fmt: skip
    questions, result, answer = rng.choice(forms)
    question = pick(questions, rng).replace("{n}", str(n)).replace("{m}", str(2 * n))
    return Exchange(question, answer.format(n=n, m=2 * n, r=result), str(result))


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
