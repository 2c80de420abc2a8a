"""A causal language model of transformers with the interface of engine/models/decoder.py's CausalLM."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.errors import UnsupportedModel
from engine.models.attention.paged import AttentionShape, PagedKVCache
from engine.models.attention.spec import AttentionSpec
from engine.models.inputs import StepInputs
from engine.models.tensor_source import TensorSource
from engine.models.transformers_backend import attention, loading
from engine.models.transformers_backend.attention import Place, Step, assign_place
from engine.models.transformers_backend.family import TransformersConfig
from engine.models.transformers_backend.head import LanguageHead
from engine.models.transformers_backend.probe import NAME as PROBE
from engine.models.transformers_backend.probe import probe


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
        specs = _probe_empty(config)  # refuses what it must before anything is read
        model = loading.load(config, source, attention=attention.NAME, dtype=dtype, device=device)
        specs = _probe_loaded(model) if specs is None else specs
        _check_cacheable(specs)
        self.attention_specs = tuple(specs.values())
        self._step = Step()
        for layer, (name, spec) in enumerate(specs.items()):
            assign_place(model.get_submodule(name), Place(layer, spec, self._step))
        self._decoder = model.base_model
        self._head = LanguageHead(model, next(iter(specs)))

    @property
    def attention_shape(self) -> AttentionShape:
        first = self.attention_specs[0]
        return AttentionShape(
            num_heads=first.num_heads,
            num_kv_heads=first.num_kv_heads,
            head_dim=first.head_dim,
            num_layers=len(self.attention_specs),
        )

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


def _check_cacheable(specs: Mapping[str, AttentionSpec]) -> None:
    """Until the cache takes a specification per layer."""
    plain = {(spec.num_heads, spec.num_kv_heads, spec.head_dim) for spec in specs.values()}
    if len(plain) > 1 or any(spec.window or spec.softcap or spec.has_sinks for spec in specs.values()):
        raise UnsupportedModel("Windows, softcaps and sinks of attention aren't supported yet.")


def _probe_empty(config: TransformersConfig) -> dict[str, AttentionSpec] | None:
    """None if the model's code needs numbers to run."""
    try:
        return probe(loading.build_empty(config, PROBE))
    except (NotImplementedError, RuntimeError):
        return None


def _probe_loaded(model: PreTrainedModel) -> dict[str, AttentionSpec]:
    model.set_attn_implementation(PROBE)
    try:
        return probe(model)
    finally:
        model.set_attn_implementation(attention.NAME)
