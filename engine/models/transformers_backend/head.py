"""From hidden states to logits, by the family's own code: some scale the logits, cap them or add a bias."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


class LanguageHead(nn.Module):
    """The model's forward function, whose decoder returns hidden states that were computed before."""

    def __init__(self, model: PreTrainedModel, attending: str) -> None:
        """`attending`: the name of a module that attends, which is a part of the decoder."""
        super().__init__()
        self._stand_in = _Computed()
        self._model = copy.copy(model)
        top, _, below = attending.partition(".")
        self._model._modules = {**model._modules, top: self._stand_in}
        decoder = model.get_submodule(top)
        self._stand_in.values = {k: v for k, v in vars(decoder).items() if not k.startswith("_")}
        for name, module in decoder.named_children():
            is_wrapped = name == below.partition(".")[0] and not isinstance(module, nn.ModuleList)
            self._stand_in.parts[name] = self._stand_in if is_wrapped else module

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[S, hidden] → [S, vocab_size]."""
        self._stand_in.hidden = hidden[None]
        try:
            token_ids = torch.zeros(1, hidden.shape[0], dtype=torch.int64, device=hidden.device)  # unread
            output = self._model(input_ids=token_ids, use_cache=False)
        finally:
            self._stand_in.hidden = None
        logits: torch.Tensor = output.logits[0]
        return logits


class _Computed(nn.Module):
    """What a decoder returns: hidden states, and None for everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: torch.Tensor | None = None
        self.parts: dict[str, nn.Module] = {}  # the real decoder's, which the head's code may use
        self.values: dict[str, Any] = {}  # its plain attributes, too

    def __getattr__(self, name: str) -> Any:
        known = {**self.__dict__.get("values", {}), **self.__dict__.get("parts", {})}
        return known[name] if name in known else super().__getattr__(name)

    def forward(self, *args: Any, **kwargs: Any) -> _Output:
        return _Output(self.hidden)


class _Output:
    def __init__(self, hidden: torch.Tensor | None) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, key: Any) -> Any:
        return (self.last_hidden_state,)[key]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
