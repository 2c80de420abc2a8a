"""Whatever the split into steps: the same text, no broken characters, the same stop string."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from engine.text.detokenizer import Detokenizer, StopStrings, TextStream
from engine.text.tokenizer import Tokenizer
from tests.engine.server.tokenizers_for_tests import byte_level_tokenizer, metaspace_tokenizer

TOKENIZERS = {
    "byte-level": Tokenizer(fast=byte_level_tokenizer()),
    "metaspace": Tokenizer(fast=metaspace_tokenizer()),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]


WORDS = ["hello ", "world", "é", "ß", "€", "あ", "🙂", "a b", "!", "\ufffd"]


def noise(rng: random.Random, tokenizer: Tokenizer) -> list[int]:
    return [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randint(0, 40))]


def text_ids(rng: random.Random, tokenizer: Tokenizer) -> list[int]:
    text = "".join(rng.choice(WORDS) for _ in range(rng.randint(0, 20)))
    return tokenizer.encode(text, add_special_tokens=False)


def splits(rng: random.Random, ids: Sequence[int]) -> Iterator[Sequence[int]]:
    start = 0
    while start < len(ids):
        end = start + rng.randint(1, 5)
        yield ids[start:end]
        start = end


def run(detokenizer: Detokenizer, steps: Iterator[Sequence[int]]) -> tuple[str, str | None, int]:
    """(text, stop string, tokens counted)."""
    text, count = "", 0
    for step in steps:
        piece = detokenizer.push(step)
        text, count = text + piece.text, count + piece.num_tokens
        if piece.stop is not None:
            return text, piece.stop, count
    piece = detokenizer.flush()
    return text + piece.text, piece.stop, count


def test_the_split_into_steps_changes_nothing(tokenizer: Tokenizer) -> None:
    for seed in range(400):
        rng = random.Random(seed)
        ids = noise(rng, tokenizer)
        one_by_one = run(Detokenizer(tokenizer), ([token] for token in ids))
        assert run(Detokenizer(tokenizer), splits(rng, ids)) == one_by_one, seed


def test_pieces_of_a_text_add_up_to_it(tokenizer: Tokenizer) -> None:
    for seed in range(400):
        rng = random.Random(seed)
        ids = text_ids(rng, tokenizer)
        text, stop, count = run(Detokenizer(tokenizer), splits(rng, ids))
        assert (text, stop, count) == (tokenizer.decode(ids, skip_special_tokens=True), None, len(ids)), seed


def test_pieces_of_noise_add_up_to_it() -> None:
    """Byte-level only: a byte fallback decodes a run of bytes as a whole, and changes earlier text."""
    tokenizer = TOKENIZERS["byte-level"]
    for seed in range(400):
        rng = random.Random(seed)
        ids = noise(rng, tokenizer)
        assert run(Detokenizer(tokenizer), splits(rng, ids))[0] == tokenizer.decode(
            ids, skip_special_tokens=True
        )


def test_no_piece_has_a_broken_character(tokenizer: Tokenizer) -> None:
    text = "é€🙂 hello あ"
    stream = TextStream(tokenizer, (), skip_special_tokens=True)
    pieces = [stream.push(token) for token in tokenizer.encode(text, add_special_tokens=False)]
    assert "".join(pieces).strip() == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert stream.flush() == ""


def test_any_number_of_replacement_characters_is_unchanged(tokenizer: Tokenizer) -> None:
    """They look like unfinished characters, and there are more of them than the limit."""
    for number in (1, 21, 22, 23, 64, 65, 66, 200):
        text = "a" + "\ufffd" * number + " b" + "é\ufffd" * 30
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert run(Detokenizer(tokenizer), ([token] for token in ids))[0].lstrip() == text, number


def test_pieces_of_a_long_text_full_of_replacement_characters_add_up_to_it(tokenizer: Tokenizer) -> None:
    for seed in range(300):
        rng = random.Random(seed)
        words = ["\ufffd" * rng.randint(1, 90), "é", "🙂", " a", "b", "€"]
        ids = tokenizer.encode("".join(rng.choices(words, k=12)), add_special_tokens=False)
        shown, _, count = run(Detokenizer(tokenizer), splits(rng, ids))
        assert (shown, count) == (tokenizer.decode(ids, skip_special_tokens=True), len(ids)), seed


def test_endless_broken_bytes_are_bounded_and_returned_once() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    broken = tokenizer.encode("🙂", add_special_tokens=False)[1]
    ids = [broken] * 500 + tokenizer.encode("ab", add_special_tokens=False)
    assert run(Detokenizer(tokenizer), ([token] for token in ids))[0] == "\ufffd" * 500 + "ab"


def test_an_unfinished_character_shows_at_the_end_only() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("a🙂", add_special_tokens=False)[:-1]
    stream = TextStream(tokenizer, (), skip_special_tokens=True)
    assert [stream.push(token) for token in ids] == ["a", "", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_a_first_space_is_kept_after_a_prompt() -> None:
    tokenizer = TOKENIZERS["metaspace"]
    prompt = tokenizer.encode("hello", add_special_tokens=True)
    answer = tokenizer.encode("world", add_special_tokens=False)
    assert TextStream(tokenizer, prompt, skip_special_tokens=True).push(answer[0]) == " world"
    assert TextStream(tokenizer, (), skip_special_tokens=True).push(answer[0]) == "world"


def test_a_prompt_that_ends_within_a_character_leaves_nothing_in_the_answer() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    broken = tokenizer.encode("🙂", add_special_tokens=False)[:2]
    stream = TextStream(tokenizer, broken, skip_special_tokens=True)
    assert stream.push(tokenizer.encode("a", add_special_tokens=False)[0]) == "a"


def test_endless_special_tokens_are_not_kept(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, tokenizer.encode("a", add_special_tokens=False), skip_special_tokens=True)
    assert {stream.push(0) for _ in range(500)} == {""}
    assert len(stream._waiting) < 100
    pieces = [stream.push(token) for token in tokenizer.encode("a b", add_special_tokens=False)]
    assert "".join(pieces).removeprefix(" ") == "a b"


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_are_skipped_or_shown(tokenizer: Tokenizer, skip: bool) -> None:
    ids = [1, *tokenizer.encode("a", add_special_tokens=False), 0]
    text, _, _ = run(Detokenizer(tokenizer, skip_special_tokens=skip), iter([ids]))
    assert text.replace(" ", "") == ("a" if skip else "<s>a<eos>")


def expected(text: str, stops: Sequence[str], include: bool) -> tuple[str, str | None]:
    """By definition: the shortest prefix of the text that ends with a stop string."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            longest = max(hits, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


@pytest.mark.parametrize("include", [True, False])
def test_stop_strings_against_their_definition(include: bool) -> None:
    tokenizer = TOKENIZERS["byte-level"]
    for seed in range(1500):
        rng = random.Random(seed)
        text = "".join(rng.choice("abé") for _ in range(rng.randint(0, 12)))
        stops = [
            "".join(rng.choice("abé") for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(1, 4))
        ]
        detokenizer = Detokenizer(tokenizer, stops=stops, include_stop_in_output=include)
        ids = tokenizer.encode(text, add_special_tokens=False)
        shown, stop, count = run(detokenizer, splits(rng, ids))
        assert (shown, stop) == expected(text, stops, include), (seed, text, stops)
        used = expected(text, stops, True)[0]
        assert count == len(used.encode()), (seed, text, stops)


def test_exactly_what_may_become_a_stop_string_is_held_back() -> None:
    stops = StopStrings(["STOP", "\n\n"])
    assert stops.push("ab S") == ("ab ", None)
    assert stops.push("T") == ("", None)
    assert stops.push("AY\n") == ("STAY", None)
    assert stops.push("x") == ("\nx", None)
    assert stops.push("..ST") == ("..", None)
    assert stops.flush() == "ST"
    assert stops.flush() == ""


def test_a_long_stop_string_costs_no_more_per_piece_than_a_short_one() -> None:
    """Held text isn't compared with every prefix again: a megabyte would take minutes."""
    stops = StopStrings(["ab" * 500_000 + "c"])
    held = sum(not stops.push("ab")[0] for _ in range(20_000))
    assert held == 20_000
    assert stops.push("x") == ("ab" * 20_000 + "x", None)


def test_no_stop_strings_hold_nothing_back() -> None:
    assert StopStrings([]).push("anything") == ("anything", None)


def test_min_tokens_delays_the_search() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("ababab", add_special_tokens=False)
    text, stop, count = run(Detokenizer(tokenizer, stops=["b"], min_tokens=2), iter([ids]))
    assert (text, stop, count) == ("aba", "b", 4)
    text, stop, _ = run(Detokenizer(tokenizer, stops=["b"], min_tokens=6), iter([ids]))
    assert (text, stop) == ("ababab", None)


def test_tokens_after_a_stop_string_are_not_counted() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    piece = Detokenizer(tokenizer, stops=["b"]).push(tokenizer.encode("abcdef", add_special_tokens=False))
    assert (piece.text, piece.num_tokens, piece.stop) == ("a", 2, "b")
