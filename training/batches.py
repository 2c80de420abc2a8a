"""Batches: documents packed into rows, with a weight per token and positions that sometimes jump.

A batch depends only on the seed and its step, so a run can be resumed at any step. Positions jump between
some documents and messages, so that the model is trained on distances far beyond a row's length.
"""

from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer

from training.corpus import document
from training.tokenizer import CONTEXT_TOKENS, END_OF_TEXT, MESSAGE_END, MESSAGE_START, Renderer

_PROMPT_SHARE = 0.1  # prompts are mostly unpredictable: few of their tokens are learnt
_PROMPT_WEIGHT = 0.4
_RAW_WEIGHT = 0.7


@dataclass(frozen=True)
class Batch:
    """Inputs, targets, loss weights and positions, each [rows, length]."""

    inputs: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor


@dataclass(frozen=True)
class _Piece:
    tokens: list[int]
    weights: list[float]
    gaps: list[int]  # the jump of the position before each token


class Packer:
    """Makes batches of a tokenizer's tokens."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._seed = seed
        self._renderer = Renderer()
        ids = tokenizer.get_vocab()
        self._end, self._start, self._stop = ids[END_OF_TEXT], ids[MESSAGE_START], ids[MESSAGE_END]
        self._assistant = tokenizer.encode("assistant").ids

    def batch(self, step: int, rows: int, length: int) -> Batch:
        """The batch of a step: every fourth has rows twice as long, every sixteenth four times as long."""
        rng = Random(f"{self._seed}/{step}")
        stretch = 4 if step % 16 == 15 else 2 if step % 4 == 3 else 1
        rows, length = max(rows // stretch, 1), length * stretch
        packed = [self._row(rng, length + 1) for _ in range(rows)]
        tokens = torch.tensor([row.tokens for row in packed])
        weights = torch.tensor([row.weights for row in packed])
        gaps = torch.tensor([row.gaps for row in packed])
        positions = (torch.arange(length + 1) + gaps.cumsum(1)).clamp(max=CONTEXT_TOKENS - 1)
        return Batch(tokens[:, :-1], tokens[:, 1:], weights[:, 1:], positions[:, :-1])

    def _row(self, rng: Random, length: int) -> _Piece:
        row = _Piece([], [], [])
        while len(row.tokens) < length:
            piece = self._piece(rng)
            row.tokens.extend(piece.tokens)
            row.weights.extend(piece.weights)
            row.gaps.extend(piece.gaps)
        return _Piece(row.tokens[:length], row.weights[:length], row.gaps[:length])

    def _piece(self, rng: Random) -> _Piece:
        drawn = document(rng)
        tokens = [*self._tokenizer.encode(self._renderer.document(drawn)).ids, self._end]
        weights = [_RAW_WEIGHT] * len(tokens) if drawn.text else self._weights(tokens, rng)
        gaps = [0] * len(tokens)
        if rng.random() < 0.2:
            gaps[0] = rng.randint(1, 300)
        for index, token in enumerate(tokens):
            if token == self._start and rng.random() < 0.02:
                gaps[index] = rng.randint(1, 200)
        return _Piece(tokens, weights, gaps)

    def _weights(self, tokens: list[int], rng: Random) -> list[float]:
        """1 for the assistant's tokens, including its end of message; a fraction of the others counts."""
        weights: list[float] = []
        is_reply, skip, head = False, 0, len(self._assistant) + 1  # the word "assistant" after the start
        for index, token in enumerate(tokens):
            if token == self._start:
                is_reply = tokens[index + 1 : index + head] == self._assistant
                skip = head
            else:
                skip = max(skip - 1, -1)
            rest = _PROMPT_WEIGHT if rng.random() < _PROMPT_SHARE else 0.0
            weights.append(1.0 if is_reply and skip < 0 else rest)
            if token == self._stop:
                is_reply = False
        return weights
