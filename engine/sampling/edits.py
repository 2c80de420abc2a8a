"""Applies LogitEdits to logits: all rows that ask for something at once, and no other row.

The order is vLLM's: allowed tokens, bad words, biases, then penalties – first repetition, then frequency and
presence.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import torch

from engine.logit_edits import LogitEdits, TokenCounts

_Number = TypeVar("_Number", int, float)


def apply_edits(logits: torch.Tensor, edits: Mapping[int, LogitEdits]) -> None:
    """Change `logits`, float32 [S, vocab_size], in place; `edits` by row. Token ids are below vocab_size."""
    for row, edit in edits.items():
        if edit.allowed_token_ids is not None:
            _allow_only(logits[row], edit.allowed_token_ids)
    forbid(logits, {row: edit.forbidden_token_ids() for row, edit in edits.items()})
    _add_biases(logits, {row: edit for row, edit in edits.items() if edit.biases})
    _penalise(
        logits,
        {row: (edit, edit.counts) for row, edit in edits.items() if edit.counts and edit.counts.token_ids},
    )


def forbid(logits: torch.Tensor, token_ids: Mapping[int, Sequence[int]]) -> None:
    """Make tokens impossible, by row."""
    rows = {row: array("q", tokens) for row, tokens in token_ids.items() if len(tokens)}
    if rows:
        logits[_places(rows, logits.device)] = -torch.inf


def _allow_only(row: torch.Tensor, token_ids: array[int]) -> None:
    """All but these become impossible; there is at least one."""
    allowed = torch.frombuffer(token_ids, dtype=torch.int64).to(row.device)
    kept = row[allowed]
    row.fill_(-torch.inf)
    row[allowed] = kept


def _add_biases(logits: torch.Tensor, edits: Mapping[int, LogitEdits]) -> None:
    if not edits:
        return
    places = _places({row: edit.bias_token_ids for row, edit in edits.items()}, logits.device)
    biases = _joined("f", [edit.biases for edit in edits.values()])
    logits[places] += torch.frombuffer(biases, dtype=torch.float32).to(logits.device)


def _penalise(logits: torch.Tensor, edits: Mapping[int, tuple[LogitEdits, TokenCounts]]) -> None:
    if not edits:
        return
    device = logits.device
    places = _places({row: counts.token_ids for row, (_, counts) in edits.items()}, device)
    joined = _joined("f", [counts.num_in_output for _, counts in edits.values()])
    num_in_output = torch.frombuffer(joined, dtype=torch.float32).to(device)
    lengths = torch.tensor([len(counts.token_ids) for _, counts in edits.values()], device=device)
    penalties = torch.tensor(
        [
            (edit.repetition_penalty, edit.frequency_penalty, edit.presence_penalty)
            for edit, _ in edits.values()
        ],
        dtype=torch.float32,
        device=device,
    )
    repetition, frequency, presence = penalties.repeat_interleave(lengths, dim=0).unbind(-1)
    values = logits[places]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= frequency * num_in_output
    values -= torch.where(num_in_output > 0, presence, 0.0)
    logits[places] = values


def _places(token_ids: Mapping[int, array[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and tokens, parallel, as an index: both int64 [N]."""
    lengths = torch.tensor([len(tokens) for tokens in token_ids.values()])
    rows = torch.tensor(list(token_ids)).repeat_interleave(lengths)
    tokens = torch.frombuffer(_joined("q", list(token_ids.values())), dtype=torch.int64)
    return rows.to(device), tokens.to(device)


def _joined(typecode: Literal["f", "q"], arrays: Sequence[array[_Number]]) -> array[_Number]:
    """End to end, in an array of its own: one that a tensor reads from must not grow any more."""
    joined: array[_Number] = array(typecode)
    for part in arrays:
        joined.extend(part)
    return joined
