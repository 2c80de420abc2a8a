"""Runs a model on a few tokens, each of which attends to itself alone, to see whether it can be trusted."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from engine.errors import UnsupportedModel
from engine.models.transformers_backend.head import LanguageHead
from engine.models.transformers_backend.probe import Anatomy, no_cache_for

_TOKENS = (5, 2, 3, 4, 2, 3)  # the last two of each half are the same
_POSITIONS = (0, 1, 2, 0, 1, 2)
_TOLERANCES = {torch.float32: 1e-3}
_ROWWISE = 1e-2
_TOLERANCE = 0.2  # of 16-bit types, in dozens of layers; another computation gives more than 1


def run_trial(model: PreTrainedModel, anatomy: Anatomy) -> torch.Tensor:
    """Logits or, without a head, hidden states of tokens that see nothing of each other: float32 [T, …]."""
    token_ids, positions = (torch.tensor([row], device=model.device) for row in (_TOKENS, _POSITIONS))
    handles = [_check_rowwise(name, model.get_submodule(name)) for name in anatomy.rowwise]
    try:
        output = model.base_model(input_ids=token_ids, position_ids=positions, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    hidden: torch.Tensor = output.last_hidden_state[0]
    if model.base_model is model:
        return hidden.float()
    logits: torch.Tensor = LanguageHead(model, anatomy.inner)(hidden).float()
    return logits


def _check_rowwise(name: str, layer: nn.Module) -> RemovableHandle:
    """A layer without attention may only run each token by itself: equal ones then give the same."""

    def check(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        after = output[0] if isinstance(output, tuple) else output
        added = (after - before)[0].float()
        if not (added[1:3] - added[4:6]).norm() <= _ROWWISE * added.norm():
            raise no_cache_for(name, module)

    return layer.register_forward_hook(check, with_kwargs=True)


def check_no_state(model: PreTrainedModel, logits: torch.Tensor) -> None:
    """Equal tokens at equal positions, after different ones, must have equal logits.

    Raises UnsupportedModel.
    """
    if not is_same(logits[1:3], logits[4:6], dtype=model.dtype):
        raise UnsupportedModel(
            f"{type(model).__name__} carries something from token to token beside attention, for which the "
            "engine has no cache yet, or counts positions itself."
        )


def check_positions(model: PreTrainedModel, logits: torch.Tensor) -> None:
    """A text's first positions are 0, 1, 2 …, as the engine numbers them: RoBERTa's kin begin with others.

    `logits`: of the trial. Raises UnsupportedModel.
    """
    token_ids = torch.tensor([_TOKENS[:3]], device=model.device)
    output: Any = model(input_ids=token_ids, use_cache=False)
    found: torch.Tensor = (output.last_hidden_state if model.base_model is model else output.logits)[0]
    if not is_same(found.float(), logits[:3], dtype=model.dtype):
        raise UnsupportedModel(f"{type(model).__name__} counts positions in a way of its own.")


def is_same(logits: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether most rows are the same but for rounding, which may send a token to another expert."""
    tolerance = _TOLERANCES.get(dtype, _TOLERANCE)
    distance = (logits - expected).norm(dim=-1) / expected.norm(dim=-1)
    return bool((distance <= tolerance).float().mean() > 0.6)
