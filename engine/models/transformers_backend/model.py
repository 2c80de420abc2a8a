"""A causal language model of transformers with the interface of engine/models/decoder.py's CausalLM."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.models.attention.paged import PagedKVCache
from engine.models.attention.spec import AttentionSpec
from engine.models.inputs import StepInputs
from engine.models.tensor_source import TensorSource
from engine.models.transformers_backend import attention, loading
from engine.models.transformers_backend.attention import Place, Step, assign_place
from engine.models.transformers_backend.family import TransformersConfig
from engine.models.transformers_backend.head import LanguageHead
from engine.models.transformers_backend.probe import NAME as PROBE
from engine.models.transformers_backend.probe import Anatomy, probe
from engine.models.transformers_backend.swaps import swap
from engine.models.transformers_backend.trial import check_no_state, is_same, run_trial

log = logging.getLogger(__name__)


class TransformersCausalLM(nn.Module):
    """Runs on flat tokens, a batch of one text to transformers; only attention knows the sequences."""

    def __init__(
        self,
        config: TransformersConfig,
        source: TensorSource,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.device = device
        anatomy = _probe_empty(config)  # refuses what it must before anything is read
        load = partial(loading.load, config, source, attention=attention.NAME, dtype=dtype, device=device)
        model = load()
        anatomy = _probe_loaded(model) if anatomy is None else anatomy
        self._step = Step()
        model = _prepared(model, anatomy, load)
        longest = config.max_position_embeddings
        self.attention_specs = tuple(_within(spec, longest) for spec in anatomy.specs.values())
        for layer, (name, spec) in enumerate(zip(anatomy.specs, self.attention_specs, strict=True)):
            assign_place(model.get_submodule(name), Place(layer, spec, self._step))
        self._decoder = model.base_model
        self._head = LanguageHead(model, next(iter(anatomy.specs)))

    def forward(self, inputs: StepInputs, cache: PagedKVCache) -> torch.Tensor:
        """The hidden states of the sampled rows, [S, hidden]; stores the step's keys and values."""
        self._step.inputs, self._step.cache = inputs, cache
        try:
            output = self._decoder(
                input_ids=inputs.token_ids[None], position_ids=inputs.positions[None], use_cache=False
            )
        finally:
            self._step.inputs = self._step.cache = None
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden if inputs.sampled_rows is None else hidden[inputs.sampled_rows]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[S, hidden] → [S, vocab_size], in the model's dtype."""
        return self._head(hidden)  # type: ignore[no-any-return]


def _within(spec: AttentionSpec, longest: int) -> AttentionSpec:
    """A window that no sequence can leave is none."""
    return replace(spec, window=None) if spec.window is not None and spec.window >= longest else spec


def _probe_empty(config: TransformersConfig) -> Anatomy | None:
    """None if the model's code needs numbers to run."""
    try:
        return probe(loading.build_empty(config, PROBE))
    except (NotImplementedError, RuntimeError):
        return None


def _probe_loaded(model: PreTrainedModel) -> Anatomy:
    model.set_attn_implementation(PROBE)
    try:
        return probe(model)
    finally:
        model.set_attn_implementation(attention.NAME)


def _prepared(
    model: PreTrainedModel, anatomy: Anatomy, load: Callable[[], PreTrainedModel]
) -> PreTrainedModel:
    """With parts of ours, if the model computes the same with them: some code doesn't get along with them."""
    expected = run_trial(model, anatomy)
    check_no_state(model, expected)
    for fuses in (True, False):
        try:
            swap(model, anatomy.linears, fuses=fuses)
            if is_same(run_trial(model, anatomy), expected, model.dtype):
                return model
        except (RuntimeError, AttributeError, TypeError):
            log.debug("Parts of this engine don't fit into the model.", exc_info=True)
        del model
        model = load()
    log.warning("None of this engine's faster layers fit into the model: it runs more slowly.")
    return model
