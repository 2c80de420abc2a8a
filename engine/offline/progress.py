"""The progress bar of a call, by prompts, with the tokens per second beside it."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

UseTqdm = bool | Callable[..., Any]  # whether to show a bar, or what makes one

_MIN_S = 1e-6


@contextmanager
def progress(use_tqdm: UseTqdm, total: int, text: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function to call for each finished prompt, with its input tokens and its output tokens."""
    if not use_tqdm:
        yield lambda num_input, num_output: None
        return
    make = _default_bar() if use_tqdm is True else use_tqdm
    bar = make(total=total, desc=text, dynamic_ncols=True)
    started, tokens = time.monotonic(), [0, 0]

    def advance(num_input: int, num_output: int) -> None:
        tokens[0] += num_input
        tokens[1] += num_output
        elapsed = max(time.monotonic() - started, _MIN_S)
        bar.set_postfix_str(
            f"input: {tokens[0] / elapsed:.1f} tok/s, output: {tokens[1] / elapsed:.1f} tok/s", refresh=False
        )
        bar.update(1)

    try:
        yield advance
    finally:
        bar.close()


def _default_bar() -> Callable[..., Any]:
    make: Callable[..., Any] = importlib.import_module("tqdm.auto").tqdm
    return make
