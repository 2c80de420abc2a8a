"""Divides a model of transformers among devices: each builds it with its share of the parameters.

The family's code runs as it is: it takes its sizes from the tensors. Hooks on its modules exchange what the
devices must know of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from engine.errors import ConfigError, UnsupportedModel
from engine.models.attention.spec import AttentionSpec
from engine.models.layers.division import DeviceGroup, Share
from engine.models.transformers_backend.divided_norm import DividedNorm
from engine.models.transformers_backend.family import TransformersConfig, reason_of
from engine.models.transformers_backend.loading import build_empty
from engine.models.transformers_backend.plan import (
    ADDS_UP,
    GATHERS,
    OVER_HEADS,
    SHARES_IDENTITY,
    SPLITS_INPUT,
    VOCABULARY,
    DividedParameter,
    Plan,
    check_has_plan,
    experts_of,
    read_plan,
)
from engine.models.transformers_backend.probe import NAME as PROBE
from engine.models.transformers_backend.probe import Anatomy, probe
from engine.models.transformers_backend.rotation import keep_rotation


class ModelDivision:
    """One device's share of a model. Until `begin` it computes without the other devices."""

    def __init__(self, config: TransformersConfig, group: DeviceGroup) -> None:
        """Raises UnsupportedModel and ConfigError."""
        whole, plan = _probe_whole(config)
        self._plan = plan
        self._group = _Group(group)
        _check_size(config, plan, whole.specs, group.size)
        self.config = replace(config, model_class=_share_class(config.model_class, self._divide))
        self.anatomy = self._probe_share(whole.specs)

    def begin(self) -> None:
        """From now on the devices run the same steps."""
        self._group.is_together = True

    def part_of(self, name: str) -> tuple[DividedParameter, list[Share]] | None:
        """A parameter's share; no shares: zeros are in its place. None if this device holds it whole."""
        parameter = self._plan.parameters.get(name)
        if parameter is None or (parameter.size is None and self._group.rank == 0):
            return None
        shares = [] if parameter.size is None else parameter.shares(self._group.rank, self._group.size)
        return parameter, shares

    def _probe_share(self, whole: Mapping[str, AttentionSpec]) -> Anatomy:
        name = self.config.architecture
        try:
            _, anatomy = _probe_empty(self.config)
        except (UnsupportedModel, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise _not_honoured(name, f"its code fails with a share: {reason_of(error)}") from error
        for place, spec in anatomy.specs.items():
            if spec not in (whole.get(place), _share_of(whole.get(place), self._group.size)):
                raise _not_honoured(name, f"{place} then has other heads than a share of its own")
        return anatomy

    def _divide(self, model: PreTrainedModel) -> None:
        """`model`: just made, without weights."""
        for name in self._plan.parameters:
            part = self.part_of(name)
            if part is not None and part[1]:
                _shrink(model, name, part[0].axis, sum(share.stop - share.start for share in part[1]))
        for name, style in self._plan.styles.items():
            self._connect(model, name, style)

    def _connect(self, model: PreTrainedModel, name: str, style: str) -> None:
        module, group = model.get_submodule(name), self._group
        if style == VOCABULARY:
            parameter = self._plan.parameters[f"{name}.weight"]
            (share,) = parameter.shares(group.rank, group.size)
            if isinstance(module, nn.Embedding):
                _connect_embedding(module, share, group)
            else:
                module.register_forward_hook(_on_output(partial(group.gather_logits, share=share)))
        elif style == OVER_HEADS:
            weight: Any = module.weight
            model.set_submodule(name, DividedNorm(weight, *self._plan.norms[name], group))
        elif style == SHARES_IDENTITY:
            module.register_forward_pre_hook(_on_input(lambda x: x / group.size))
        elif style in GATHERS:
            module.register_forward_hook(_on_output(group.gather_everywhere))
        elif style in ADDS_UP:
            if style in SPLITS_INPUT:
                module.register_forward_pre_hook(_on_input(group.own_columns))
            module.register_forward_hook(_on_output(group.all_reduce))


class _Group:
    """A DeviceGroup whose devices compute apart, each as if it were alone, until they begin together."""

    def __init__(self, group: DeviceGroup) -> None:
        self.rank = group.rank
        self.size = group.size
        self.is_together = False
        self._group = group

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return self._group.all_reduce(x) if self.is_together else x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        return self._group.gather(x) if self.is_together else x

    def own_columns(self, x: torch.Tensor) -> torch.Tensor:
        return x.chunk(self.size, dim=-1)[self.rank].contiguous()

    def gather_everywhere(self, x: torch.Tensor) -> torch.Tensor:
        if not self.is_together:
            return torch.cat([x] * self.size, dim=-1)
        parts = [x if rank == self.rank else torch.zeros_like(x) for rank in range(self.size)]
        return self.all_reduce(torch.cat(parts, dim=-1))

    def gather_logits(self, x: torch.Tensor, share: Share) -> torch.Tensor:
        """All of them on rank 0."""
        num_missing = -(-share.size // self.size) - x.shape[-1]
        padded = F.pad(x, (0, num_missing)) if num_missing else x
        return self.gather(padded)[..., : share.size] if self.is_together else x


def _connect_embedding(module: nn.Embedding, share: Share, group: _Group) -> None:
    elsewhere: list[torch.Tensor] = []  # between the two hooks
    size = share.stop - share.start

    def before(token_ids: torch.Tensor) -> torch.Tensor:
        if not group.is_together:
            return token_ids % max(1, size)
        own = token_ids - share.start
        elsewhere.append((own < 0) | (own >= size))
        return own.masked_fill(elsewhere[-1], 0)

    def after(x: torch.Tensor) -> torch.Tensor:
        if not elsewhere:
            return x
        return group.all_reduce(x.masked_fill(elsewhere.pop()[..., None], 0))

    module.register_forward_pre_hook(_on_input(before))
    module.register_forward_hook(_on_output(after))


def check_divisible(config: TransformersConfig, size: int) -> None:
    """Raises UnsupportedModel and ConfigError."""
    ModelDivision(config, _FirstOf(size))


class _FirstOf:
    """Rank 0 of a group that doesn't exist yet."""

    rank = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def _probe_whole(config: TransformersConfig) -> tuple[Anatomy, Plan]:
    check_has_plan(build_empty(config, PROBE))
    try:
        model, anatomy = _probe_empty(config)
    except (NotImplementedError, RuntimeError) as error:
        raise _not_honoured(config.architecture, "its code doesn't run without numbers") from error
    return anatomy, read_plan(model, anatomy.specs)


def _probe_empty(config: TransformersConfig) -> tuple[PreTrainedModel, Anatomy]:
    """Where code depends on numbers, experts choose no tokens, and rotations no frequencies."""
    model = build_empty(config, PROBE)
    try:
        return model, probe(model)
    except (NotImplementedError, RuntimeError):
        model = build_empty(config, PROBE)
        keep_rotation(model)
        for module in experts_of(model):
            object.__setattr__(module, "forward", _no_experts)
        return model, probe(model)


def _no_experts(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.zeros_like(x)


def _check_size(
    config: TransformersConfig, plan: Plan, specs: Mapping[str, AttentionSpec], size: int
) -> None:
    if plan.fits(size, specs):
        return
    most = max(spec.num_heads for spec in specs.values())
    working = [str(other) for other in range(1, most + 1) if plan.fits(other, specs)]
    raise ConfigError(
        f"--tensor-parallel-size {size} doesn't divide {config.architecture}: its heads, or the sizes of its "
        f"layers, aren't multiples of it. Possible: {', '.join(working)}."
    )


def _share_of(spec: AttentionSpec | None, size: int) -> AttentionSpec | None:
    if spec is None:
        return None
    return replace(spec, num_heads=spec.num_heads // size, num_kv_heads=max(1, spec.num_kv_heads // size))


def _share_class(model_class: Any, divide: Callable[[PreTrainedModel], None]) -> Any:
    """The class, whose models are divided as soon as they are made."""

    def initialise(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        divide(self)

    names = {"__init__": initialise, "__module__": model_class.__module__}  # transformers looks at both names
    return type(model_class.__name__, (model_class,), names)


def _shrink(model: PreTrainedModel, name: str, axis: int, size: int) -> None:
    path, _, own = name.rpartition(".")
    module: Any = model.get_submodule(path)
    parameter = module._parameters[own]
    shape = list(parameter.shape)
    shape[axis] = size
    setattr(module, own, nn.Parameter(parameter.new_empty(shape), requires_grad=False))
    if isinstance(module, nn.Linear) and own == "weight":
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.padding_idx = size, None  # which matters to a training only


def _on_input(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    return lambda module, args: (change(args[0]), *args[1:])


def _on_output(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return hook


def _not_honoured(architecture: str, reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{architecture} can't be divided among devices by transformers' plan: {reason}. "
        "Use --tensor-parallel-size 1.",
        advice=None,
    )
