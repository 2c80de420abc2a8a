"""Validates a compiled grammar by a short random walk, before any sequence follows it in the engine's steps.

There, a dead end would end the request, and a slow grammar would delay all other requests.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.errors import InvalidRequest

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar

_NUM_STEPS = 32
_SLOW_STEP_S = 0.02  # of processor time
_MAX_SLOW_STEPS = 3  # the first may be slower than later ones


def validate_grammar(
    grammar: CompiledGrammar, vocab_size: int, eos_token_ids: Sequence[int], param: str
) -> None:
    """Raises InvalidRequest for a grammar that reaches a dead end, or whose tokens take too long."""
    import numpy as np
    from xgrammar import GrammarMatcher

    matcher = GrammarMatcher(grammar)
    mask = np.full((1, -(-vocab_size // 32)), -1, np.int32)
    draw = random.Random(0)  # noqa: S311 - the same walk each time
    num_slow = 0
    for _ in range(_NUM_STEPS):
        started = time.thread_time()
        matcher.fill_next_token_bitmask(mask)
        token = _choose(mask[0].tolist(), eos_token_ids, draw)
        if token is None:
            if matcher.is_completed():
                return
            raise InvalidRequest(
                f"{param} can't be enforced: it matches no finite text, or none that the model's tokens "
                "can spell.",
                param=param,
            )
        if not matcher.accept_token(token):
            return
        num_slow += time.thread_time() - started > _SLOW_STEP_S
        if num_slow > _MAX_SLOW_STEPS:
            raise InvalidRequest(
                f"{param} takes too long per token: simplify it (nested counts and ambiguous parts cost "
                "most).",
                param=param,
            )


def _choose(words: list[int], eos_token_ids: Sequence[int], draw: random.Random) -> int | None:
    """A random token whose bit is set, but no end token; None if there is none."""
    for token in eos_token_ids:
        words[token // 32] &= ~(1 << token % 32)
    filled = [index for index, word in enumerate(words) if word]
    if not filled:
        return None
    index = draw.choice(filled)
    return index * 32 + draw.choice([bit for bit in range(32) if words[index] >> bit & 1])
