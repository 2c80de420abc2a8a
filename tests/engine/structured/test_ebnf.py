"""Grammars in EBNF: every character is a step, however the rules divide a text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.errors import InvalidRequest
from engine.structured import StructuredKind, StructuredOutput
from tests.engine.structured.walking import Walker


@pytest.fixture(scope="module")
def walker() -> Walker:
    return Walker()


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ('root ::= "yes" | "no" " way"', ["yes", "no way"], ["no", "no wayx", ""]),
        ('root ::= [a-z]* "bcd"', ["bcd", "bcdbcd", "abcd"], ["abc", "bcda"]),
        ('root ::= "ab" root? | "abc"  # no terminal takes all it can\n', ["ababc", "ab"], ["abca"]),
        ('root ::= ("é" | [^a-z"\\n]){2,3}', ["éé", "é1é"], ["é", "é\n", "ab"]),
        ('root ::= e\ne ::= e "+" t | t\nt ::= [0-9]+ | "(" e ")"', ["1+2+33", "(1+2)+3"], ["1+", "()"]),
        ('root ::= [\\u0041-\\x43\\]-]{1,2} "\\t\\""', ['A]\t"', '-\t"'], ['D\t"']),
        ('Root-Rule ::= "x"\nroot ::= Root-Rule Root-Rule', ["xx"], ["x"]),
        ('root ::= "a"{2} . ("b" "c")*', ["aa?", "aa?bcbc"], ["aa", "aa\n", "aa?b"]),
        ('root ::= "" | "a"', ["", "a"], ["aa"]),
    ],
)
async def test_a_grammar_takes_its_texts(
    walker: Walker, grammar: str, good: Sequence[str], bad: Sequence[str]
) -> None:
    wanted = StructuredOutput(StructuredKind.GRAMMAR, grammar, "structured_outputs.grammar")
    compiled = await walker.grammar_compiler.compile(wanted)
    assert [text for text in good if not walker.takes(compiled, text)] == []
    assert [text for text in bad if walker.takes(compiled, text)] == []


@pytest.mark.parametrize(
    ("grammar", "what"),
    [
        ("root ::= ???", "line 1: '\\?' is where a rule"),
        ('root ::= "a"\n  b', "line 2: the rule 'b' is not defined"),
        ('root ::= ("a"', r"'the end' is where \) should be"),
        ('a ::= "a"', "there is no rule 'root'"),
        ('root ::= "a"\nroot ::= "b"', "line 2: the rule 'root' is defined twice"),
        ("root ::= [z-a]", "the wrong way round"),
        ('root ::= "a', "is unexpected"),
        ("root ::= " + "(" * 200 + '"a"' + ")" * 200, "nested more than 100 deep"),
    ],
)
async def test_what_is_no_grammar_is_named(walker: Walker, grammar: str, what: str) -> None:
    wanted = StructuredOutput(StructuredKind.GRAMMAR, grammar, "structured_outputs.grammar")
    with pytest.raises(InvalidRequest, match=what) as raised:
        await walker.grammar_compiler.compile(wanted)
    assert raised.value.param == "structured_outputs.grammar"
