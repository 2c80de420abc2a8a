"""Runs a model on a few tokens, each of which attends to itself alone, to see whether it can be trusted."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from engine.errors import UnsupportedModel
from engine.models.transformers_backend.head import LanguageHead
from engine.models.transformers_backend.probe import Anatomy

_TOKENS = (5, 2, 3, 4, 2, 3)  # the last two of each half are the same
_POSITIONS = (0, 1, 2, 0, 1, 2)
_TOLERANCES = {torch.float32: 1e-3}
_TOLERANCE = 0.2  # of 16-bit types, in dozens of layers; another computation gives more than 1


def run_trial(model: PreTrainedModel, anatomy: Anatomy) -> torch.Tensor:
    """Logits or, without a head, hidden states of tokens that see nothing of each other: float32 [T, …]."""
    token_ids, positions = (torch.tensor([row], device=model.device) for row in (_TOKENS, _POSITIONS))
    output = model.base_model(input_ids=token_ids, position_ids=positions, use_cache=False)
    hidden: torch.Tensor = output.last_hidden_state[0]
    if model.base_model is model:
        return hidden.float()
    logits: torch.Tensor = LanguageHead(model, anatomy.inner)(hidden).float()
    return logits


def check_no_state(model: PreTrainedModel, logits: torch.Tensor) -> None:
    """Equal tokens at equal positions, after different ones, must have equal logits.

    Raises UnsupportedModel.
    """
    if not is_same(logits[1:3], logits[4:6], dtype=model.dtype):
        raise UnsupportedModel(
            f"{type(model).__name__} carries something from token to token beside attention, for which the "
            "engine has no cache yet, or counts positions itself."
        )


def is_same(logits: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether most rows are the same but for rounding, which may send a token to another expert."""
    tolerance = _TOLERANCES.get(dtype, _TOLERANCE)
    distance = (logits - expected).norm(dim=-1) / expected.norm(dim=-1)
    return bool((distance <= tolerance).float().mean() > 0.6)
