"""Tries whether a module continues a text from its state: not every one does, or does it right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from engine.errors import UnsupportedModel
from engine.models.state.plan import StateGroup
from engine.models.transformers_backend.mixers import Mixer, Tokens, joined, num_tokens_of

_TOLERANCES = {torch.float32: 1e-3}
_TOLERANCE = 0.1  # of 16-bit types
_FIRST = 2  # tokens of the first chunk: fewer than a convolution's


@contextmanager
def examining(mixers: Sequence[Mixer]) -> Iterator[None]:
    """Tries each on the tokens that it is given, which sets its specification. Raises UnsupportedModel."""
    for mixer in mixers:
        mixer.examine = _examine
    try:
        yield
    finally:
        for mixer in mixers:
            mixer.examine = None


def _examine(mixer: Mixer, tokens: Tokens) -> None:
    whole = mixer.run(tokens, _chunk(0, num_tokens_of(tokens)))
    if not _is_same(_in_parts(mixer, tokens), whole):
        mixer.steps_by_token = True
        if not _is_same(_in_parts(mixer, tokens), whole):
            raise UnsupportedModel(
                f"{mixer.name} doesn't continue a text from its state as it runs the whole text (transformers "
                f"{transformers.__version__})."
            )


def _in_parts(mixer: Mixer, tokens: Tokens) -> Any:
    """What a text gives in chunks, each of which continues from the state that the last has left."""
    number = num_tokens_of(tokens)
    first = mixer.call(tokens, _chunk(0, _FIRST), mixer.state.fresh())
    parts = mixer.state.learn()
    _check_batch(mixer, tokens, parts)
    middle = mixer.run(tokens, _chunk(_FIRST, number - 1), parts, continues=True)
    last = mixer.run(tokens, _chunk(number - 1, number), parts, continues=True)
    return joined([first, middle, last])


def _check_batch(mixer: Mixer, tokens: Tokens, parts: Sequence[torch.Tensor]) -> None:
    """Two sequences that run one token each, once after a chunk and once as their first."""
    stop = _FIRST + 2
    rows, both = (_chunk(_FIRST, stop - 1), _chunk(stop - 1, stop)), StateGroup(slice(_FIRST, stop), 2)
    for continues in (True, False):
        alone = [mixer.run(tokens, one, [x.clone() for x in parts], continues=continues) for one in rows]
        doubled = [torch.cat([part, part]) for part in parts]
        together = mixer.run(tokens, both, doubled, continues=continues)
        if not _is_same(together, joined(alone)):
            raise UnsupportedModel(f"{mixer.name} computes two sequences at once otherwise than each alone.")


def _chunk(start: int, stop: int) -> StateGroup:
    return StateGroup(slice(start, stop), 1)


def _is_same(found: Any, expected: Any) -> bool:
    if isinstance(expected, tuple):
        return all(map(_is_same, found, expected))
    distance, size = (found - expected).float().norm(), expected.float().norm()
    return bool(distance <= _TOLERANCES.get(expected.dtype, _TOLERANCE) * size)
