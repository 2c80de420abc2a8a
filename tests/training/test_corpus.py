"""The generators: the same seed gives the same text, answers are true, and held-out questions stay unseen."""

from __future__ import annotations

import json
import re
from itertools import islice
from random import Random

import pytest

from configs.settings import Settings
from training import berth, facts, replies, stories, sums, tool_chats
from training.batches import Packer
from training.corpus import documents
from training.grammar import Document, dress
from training.heldout import probes
from training.tokenizer import CONTEXT_TOKENS, train_tokenizer
from training.wordings import expand, fill

NUM_DOCUMENTS = 4000


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return list(islice(documents(seed=5), NUM_DOCUMENTS))


def test_a_seed_gives_one_corpus(corpus: list[Document]) -> None:
    assert list(islice(documents(seed=5), 300)) == corpus[:300]
    assert list(islice(documents(seed=6), 300)) != corpus[:300]


def test_alternatives_are_chosen_and_slots_filled() -> None:
    said = {expand("[a|b [c|d]|] e", Random(seed)) for seed in range(60)}
    assert said == {"a e", "b c e", "b d e", "e"}
    assert fill('{x} {"json": {y}}', x=1, y=2) == '1 {"json": 2}'


def test_no_template_is_left_unfilled(corpus: list[Document]) -> None:
    slots = re.compile(r"\{(?:c|n|t|q|m|a|b|w|x|y|name|noun|country|thing|sum|text|keys|asked)\}|\[[^\]]*\|")
    for document in corpus:
        for text in (document.text, *(str(message["content"]) for message in document.messages)):
            assert not slots.search(text), text


def test_held_out_questions_are_never_generated(corpus: list[Document]) -> None:
    seen = {message["content"] for document in corpus for message in document.messages}
    assert not seen & {probe.prompt for probe in probes() if probe.chat}


def test_sums_are_right() -> None:
    rng = Random(1)
    for _ in range(2000):
        answer = rng.choice((sums.addition, sums.subtraction, sums.multiplication))(rng).answer
        a, sign, b, result = re.fullmatch(r"(\d+) ([-+*]) (\d+) = (-?\d+)", answer).groups()  # type: ignore[union-attr]
        assert int(result) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]


def test_every_small_sum_is_asked() -> None:
    rng = Random(2)
    seen = {sums.addition(rng).answer for _ in range(12000)}
    wanted = {f"{a} + {b} = {a + b}" for a in range(21) for b in range(21)}
    assert wanted <= seen


def test_the_settings_that_it_teaches_exist() -> None:
    assert berth.settings().keys() <= {name.upper() for name in Settings.model_fields}


def test_the_defaults_told_are_berths() -> None:
    told = {name: setting["default"] for name, setting in berth.settings().items() if setting["default"]}
    fields = {name.upper(): field.default for name, field in Settings.model_fields.items()}
    berths = {name: fields[name] for name in told}
    said = {
        name: f"{value:g}" if type(value) is float else str(value).lower() for name, value in berths.items()
    }
    assert told == said


def test_a_capital_has_one_country_except_london() -> None:
    cities = [city for city in facts.capitals().values() if city != "London"]
    assert len(cities) == len(set(cities))


def test_json_replies_parse() -> None:
    rng = Random(3)
    for _ in range(500):
        json.loads(replies.document(rng).messages[-1]["content"])


def test_a_call_names_an_offered_tool_and_its_parameters() -> None:
    rng, num_calls = Random(4), 0
    for _ in range(800):
        document = tool_chats.document(rng)
        offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in document.tools}
        for message in document.messages:
            for call in message.get("tool_calls", ()):
                function = call["function"]
                assert set(function["arguments"]) == set(offered[function["name"]]["properties"])
                num_calls += 1
    assert num_calls > 500


def test_a_story_is_about_what_was_asked() -> None:
    told = stories.story(Random(5), hero="fox", name="Mimo", place="harbour")
    assert "fox called Mimo" in told
    assert "harbour" in told


def test_a_dressed_question_keeps_its_words() -> None:
    for seed in range(200):
        said = dress("What is the capital of France?", Random(seed)).lower()
        assert {"what", "is", "the", "capital", "of", "france"} <= set(re.findall(r"\w+", said))


def test_a_batch_depends_on_seed_and_step_only() -> None:
    tokenizer = train_tokenizer(seed=1, vocabulary=600, num_documents=300)
    first, again = Packer(tokenizer, seed=1), Packer(tokenizer, seed=1)
    first.batch(0, rows=4, length=64)
    one, other = first.batch(7, rows=4, length=64), again.batch(7, rows=4, length=64)
    assert one.inputs.shape == (2, 128)  # every fourth step has longer rows
    assert one.inputs.equal(other.inputs)
    assert one.weights.equal(other.weights)
    assert one.inputs[:, 1:].equal(one.targets[:, :-1])
    assert int(one.positions.max()) < CONTEXT_TOKENS
    assert bool((one.positions.diff(dim=1) >= 0).all())
