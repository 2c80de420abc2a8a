"""Prompts of about a given number of tokens, for a server with an unknown tokenizer: the server counts."""

from __future__ import annotations

import random
from collections.abc import Callable

# Common short words, so that most tokenizers have one token for each. Their order differs in each prompt, so
# that prefix caches don't reduce the work.
# fmt: off
_WORDS = (
    "the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are",
    "as", "with", "his", "they", "at", "be", "this", "have", "from", "or", "one", "had", "by",
    "word", "but", "not", "what", "all", "were", "we", "when", "your", "can", "said", "there",
    "use", "an", "each", "which", "she", "do", "how", "their", "if", "will", "up", "other", "about",
    "out", "many", "then", "them", "these", "so", "some", "her", "would", "make", "like", "him",
    "into", "time", "has", "look", "two", "more", "write", "go", "see",
)
# fmt: on
_ROUNDS = 4
_SAMPLES = 3
_CLOSE_ENOUGH = 0.02


def prompt_of(num_words: int, rng: random.Random) -> str:
    """Uses all words equally often, so that prompts of equal word counts have about equal token counts."""
    words: list[str] = []
    while len(words) < max(1, num_words):
        words += rng.sample(_WORDS, len(_WORDS))
    return " ".join(words[: max(1, num_words)])


def words_for(num_tokens: int, count: Callable[[str], int | None], rng: random.Random) -> int:
    """The number of words for about `num_tokens` tokens, by `count`; if that is unknown, `num_tokens`."""
    num_words = num_tokens
    for _ in range(_ROUNDS):
        counts = [count(prompt_of(num_words, rng)) for _ in range(_SAMPLES)]
        known = [tokens for tokens in counts if tokens]
        if not known:
            break
        counted = sum(known) / len(known)
        wanted = max(1, round(num_words * num_tokens / counted))
        if abs(counted - num_tokens) <= _CLOSE_ENOUGH * num_tokens or wanted == num_words:
            break
        num_words = wanted
    return num_words
