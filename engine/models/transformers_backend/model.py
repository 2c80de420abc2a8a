"""Decoders of transformers with the interface of this engine's own, engine/models/decoder.py's CausalLM."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from engine.errors import EngineError, UnsupportedModel
from engine.models.attention.paged import PagedKVCache
from engine.models.attention.spec import AttentionSpec
from engine.models.inputs import StepInputs
from engine.models.layers.division import DeviceGroup
from engine.models.layers.head import Head
from engine.models.layers.weights import StoredLayer
from engine.models.tensor_source import TensorSource
from engine.models.transformers_backend import attention, loading
from engine.models.transformers_backend.attention import Place, Step, assign_place
from engine.models.transformers_backend.division import ModelDivision
from engine.models.transformers_backend.family import TransformersConfig, reason_of
from engine.models.transformers_backend.head import LanguageHead
from engine.models.transformers_backend.mixers import Traits, attach
from engine.models.transformers_backend.probe import NAME as PROBE
from engine.models.transformers_backend.probe import Anatomy, probe
from engine.models.transformers_backend.rotation import fix_rotation
from engine.models.transformers_backend.state_trial import examining
from engine.models.transformers_backend.swaps import swap
from engine.models.transformers_backend.trial import check_no_state, check_positions, is_same, run_trial

log = logging.getLogger(__name__)


class _TransformersModel(nn.Module):
    """Runs on flat tokens, a batch of one text to transformers; only attention knows the sequences."""

    def __init__(
        self,
        config: TransformersConfig,
        source: TensorSource,
        *,
        dtype: torch.dtype,
        device: torch.device,
        group: DeviceGroup | None = None,
    ) -> None:
        """`group`: the devices among which the model is divided."""
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.device = device
        with _refused_if_it_fails(config):
            division = None if group is None else ModelDivision(config, group)
            # refuses what it must before anything is read
            anatomy = probe_empty(config) if division is None else division.anatomy
        longest = config.longest_sequence
        self._step = Step()
        options: dict[str, Any] = {"attention": attention.NAME, "dtype": dtype, "device": device}
        if division is not None:
            config, options["part_of"] = division.config, division.part_of

        def load() -> PreTrainedModel:
            model = loading.load(config, source, **options)
            fix_rotation(model, longest)
            return model

        model = load()
        with _refused_if_it_fails(config):
            anatomy = _probe_loaded(model) if anatomy is None else anatomy
            expected, traits = _try_out(model, anatomy, self._step)

        def load_again() -> PreTrainedModel:
            model = load()
            attach(model, anatomy.states, self._step, traits)
            return model

        loaded = [model]
        del model  # so that one which our parts don't fit is freed before the next is loaded
        model = _prepared(loaded, anatomy, expected, load_again)
        self.attention_specs = tuple(_within(spec, longest) for spec in anatomy.specs.values())
        for layer, (name, spec) in enumerate(zip(anatomy.specs, self.attention_specs, strict=True)):
            assign_place(model.get_submodule(name), Place(layer, spec, self._step))
        self.state_specs = tuple(one.spec for one in traits)
        self._model = model
        self._decoder = model.base_model
        self._inner = anatomy.inner
        if division is not None:
            division.begin()

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


class TransformersCausalLM(_TransformersModel):
    def __init__(self, config: TransformersConfig, source: TensorSource, **options: Any) -> None:
        super().__init__(config, source, **options)
        self._head = LanguageHead(self._model, self._inner)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[S, hidden] → [S, vocab_size], in the model's dtype."""
        return self._head(hidden)  # type: ignore[no-any-return]


class PooledTransformers(_TransformersModel):
    """Without its language head, as engine/models/pooled_decoder.py's PooledDecoder."""

    def __init__(
        self, config: TransformersConfig, source: TensorSource, *, score: Head | None, **options: Any
    ) -> None:
        """`score`, if there is one, is filled from the source unless the caller derives it."""
        super().__init__(loading.headless(config), source, **options)
        self.score = score
        if score is not None and score.part_shapes():
            score.load_from(StoredLayer(source, ("score",), device=self.device, dtype=self.dtype))

    def classify(self, pooled: torch.Tensor) -> torch.Tensor:
        """[S, hidden] → logits, float32 [S, num_labels]. Requires a score layer."""
        if self.score is None:
            raise TypeError("This decoder was built without a score layer.")
        return self.score(pooled)  # type: ignore[no-any-return]


@contextmanager
def _refused_if_it_fails(config: TransformersConfig) -> Iterator[None]:
    """Code that nobody has tried with this engine may fail in any way, but not for lack of memory."""
    try:
        yield
    except (EngineError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        if "DefaultCPUAllocator" in str(error):
            raise
        raise UnsupportedModel(
            f"{config.architecture} doesn't run on this engine's batches: transformers "
            f"{transformers.__version__} says {reason_of(error)!r}."
        ) from error


def _within(spec: AttentionSpec, longest: int) -> AttentionSpec:
    """A window that no sequence can leave is none."""
    return replace(spec, window=None) if spec.window is not None and spec.window >= longest else spec


def probe_empty(config: TransformersConfig) -> Anatomy | None:
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


def _try_out(model: PreTrainedModel, anatomy: Anatomy, step: Step) -> tuple[torch.Tensor, list[Traits]]:
    """What the model's own code makes of a few tokens, and of a state where it carries one."""
    mixers = attach(model, anatomy.states, step)
    with examining(mixers):
        expected = run_trial(model, anatomy)
    check_no_state(model, expected)
    if not mixers:
        check_positions(model, expected)
    return expected, [mixer.traits for mixer in mixers]


def _prepared(
    loaded: list[PreTrainedModel],
    anatomy: Anatomy,
    expected: torch.Tensor,
    load: Callable[[], PreTrainedModel],
) -> PreTrainedModel:
    """With parts of ours, if the model computes the same with them: some code doesn't get along with them."""
    model = loaded.pop()
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
