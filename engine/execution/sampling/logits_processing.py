"""Applies LogitsProcessors to logits, for all rows that have some at once, and leaves other rows alone.

The order is vLLM's: allowed tokens, bad words, biases, then penalties: repetition first, then frequency and
presence.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from engine.core.logits_processors import MANY_LISTED, LogitsProcessors, TokenCounts, TokenRules

_Number = TypeVar("_Number", int, float)


def apply_logits_processors(logits: torch.Tensor, processors: Mapping[int, LogitsProcessors]) -> None:
    """Change `logits`, float32 [S, vocab_size], in place. `processors` by row; token ids < vocab_size."""
    for row, processor in processors.items():
        if processor.rules.num_listed > MANY_LISTED:
            _whole_row(processor.rules, logits).apply(logits[row])
    short = {
        row: processor for row, processor in processors.items() if processor.rules.num_listed <= MANY_LISTED
    }
    for row, processor in short.items():
        if processor.rules.allowed_token_ids is not None:
            _allow_only(logits[row], processor.rules.allowed_token_ids)
    completing = {row: processor.completing_token_ids() for row, processor in processors.items()}
    forbid(
        logits,
        {
            row: tokens + processors[row].rules.always_forbidden if row in short else tokens
            for row, tokens in completing.items()
        },
    )
    _add_biases(logits, {row: processor.rules for row, processor in short.items() if processor.rules.biases})
    _penalise(
        logits,
        {
            row: (processor, processor.counts)
            for row, processor in processors.items()
            if processor.counts and processor.counts.token_ids
        },
    )


@dataclass(frozen=True, slots=True)
class _WholeRow:
    """Long lists, as a mask and an addend for every token: built once per request, two operations per row."""

    forbidden: torch.Tensor | None  # bool [vocab_size]
    biases: torch.Tensor | None  # float32 [vocab_size]

    def apply(self, row: torch.Tensor) -> None:
        if self.forbidden is not None:
            row.masked_fill_(self.forbidden, -torch.inf)
        if self.biases is not None:
            row += self.biases


def _whole_row(rules: TokenRules, logits: torch.Tensor) -> _WholeRow:
    """Cached with the rules from step to step, as the choices of a request share them."""
    if rules.applied is None:
        vocab_size, device = logits.shape[-1], logits.device
        forbidden = biases = None
        if rules.allowed_token_ids is not None or rules.always_forbidden:
            forbidden = torch.full((vocab_size,), rules.allowed_token_ids is not None)
            if rules.allowed_token_ids is not None:
                forbidden[_tensor(rules.allowed_token_ids)] = False
            if rules.always_forbidden:
                forbidden[_tensor(rules.always_forbidden)] = True
            forbidden = forbidden.to(device)
        if rules.biases:
            biases = torch.zeros(vocab_size)
            biases[_tensor(rules.bias_token_ids)] = torch.frombuffer(rules.biases, dtype=torch.float32)
            biases = biases.to(device)
        rules.applied = _WholeRow(forbidden, biases)
    whole: _WholeRow = rules.applied
    return whole


def _tensor(token_ids: array[int]) -> torch.Tensor:
    return torch.frombuffer(token_ids, dtype=torch.int64)


def forbid(logits: torch.Tensor, token_ids: Mapping[int, Sequence[int]]) -> None:
    """Make tokens impossible, by row."""
    rows = {row: array("q", tokens) for row, tokens in token_ids.items() if len(tokens)}
    if rows:
        logits[_places(rows, logits.device)] = -torch.inf


def _allow_only(row: torch.Tensor, token_ids: array[int]) -> None:
    """Make all other tokens impossible; `token_ids` has at least one."""
    allowed = torch.frombuffer(token_ids, dtype=torch.int64).to(row.device)
    kept = row[allowed]
    row.fill_(-torch.inf)
    row[allowed] = kept


def _add_biases(logits: torch.Tensor, rules: Mapping[int, TokenRules]) -> None:
    if not rules:
        return
    places = _places({row: rule.bias_token_ids for row, rule in rules.items()}, logits.device)
    biases = _concatenate("f", [rule.biases for rule in rules.values()])
    logits[places] += torch.frombuffer(biases, dtype=torch.float32).to(logits.device)


def _penalise(logits: torch.Tensor, processors: Mapping[int, tuple[LogitsProcessors, TokenCounts]]) -> None:
    if not processors:
        return
    device = logits.device
    places = _places({row: counts.token_ids for row, (_, counts) in processors.items()}, device)
    joined = _concatenate("f", [counts.num_in_output for _, counts in processors.values()])
    num_in_output = torch.frombuffer(joined, dtype=torch.float32).to(device)
    lengths = torch.tensor([len(counts.token_ids) for _, counts in processors.values()], device=device)
    penalties = torch.tensor(
        [
            (processor.repetition_penalty, processor.frequency_penalty, processor.presence_penalty)
            for processor, _ in processors.values()
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
    tokens = torch.frombuffer(_concatenate("q", list(token_ids.values())), dtype=torch.int64)
    return rows.to(device), tokens.to(device)


def _concatenate(typecode: Literal["f", "q"], arrays: Sequence[array[_Number]]) -> array[_Number]:
    """The arrays end to end, in a new array: one that a tensor reads from must not grow."""
    joined: array[_Number] = array(typecode)
    for part in arrays:
        joined.extend(part)
    return joined
