"""Transformers' plan of a model for several devices, read as shares of its parameters.

The plan names modules and parameters, with a number as `*`, and gives each a style. What a style means is
written here in two parts: the axis on which parameters are divided, and what the module's calls exchange.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from engine.errors import UnsupportedModel
from engine.models.attention.spec import AttentionSpec
from engine.models.layers.division import Share
from engine.models.transformers_backend.own_plans import ONCE, OWN_PLANS
from engine.models.transformers_backend.swaps import may_be_norm, norm_formula

_OUTPUTS, _INPUTS = -2, -1  # axes of a matrix, which a stack of experts may precede
_COLUMNS = {"colwise": 1, "colwise_gather_output": 1, "colwise_rep": 1, "packed_colwise": 2}
_ROWS = {"rowwise": 1, "rowwise_split_input": 1, "rowwise_rep": 1, "packed_rowwise": 2}
_WHOLE = ("replicated_with_grad_allreduce", "mla_kv_a_proj", "local_params", "replicate")
ADDS_UP = frozenset({*_ROWS, "moe_tp_experts", "all_reduce"}) - {"packed_rowwise"}
SPLITS_INPUT = frozenset({"rowwise_split_input", "rowwise_rep"})
GATHERS = frozenset({"colwise_gather_output", "colwise_rep"})
SHARES_IDENTITY = "moe_identity_expert"
VOCABULARY, OVER_HEADS = "vocabulary", "norm over heads"  # of this engine's own
_KNOWN = {*_COLUMNS, *_ROWS, *_WHOLE, *ADDS_UP, SHARES_IDENTITY, ONCE}


@dataclass(frozen=True, slots=True)
class DividedParameter:
    """A parameter of which each device holds a share; `size` is None for one that only rank 0 adds."""

    axis: int
    size: int | None
    num_packed: int = 1  # so many matrices, one after the other on the axis, are divided each
    num_heads: int = 0  # key-value heads along the axis, which may be fewer than devices
    is_vocabulary: bool = False  # whose shares may differ in size

    def fits(self, num_devices: int) -> bool:
        if self.size is None or self.is_vocabulary:
            return True
        if self.num_heads:
            return self.num_heads % num_devices == 0 or num_devices % self.num_heads == 0
        return self.size % (self.num_packed * num_devices) == 0

    def shares(self, rank: int, num_devices: int) -> list[Share]:
        """Of the axis, for one rank; one for each of the packed matrices."""
        if self.size is None:
            raise ValueError("It isn't divided.")
        if self.is_vocabulary:
            block = -(-self.size // num_devices)
            start = min(rank * block, self.size)
            return [Share(start, min(start + block, self.size), self.size)]
        packed = self.size // self.num_packed
        num_shares = min(num_devices, self.num_heads) if self.num_heads else num_devices
        own = packed // num_shares
        starts = [part * packed + rank * num_shares // num_devices * own for part in range(self.num_packed)]
        return [Share(start, start + own, self.size) for start in starts]


@dataclass(frozen=True, slots=True)
class Plan:
    parameters: Mapping[str, DividedParameter]  # by name
    styles: Mapping[str, str]  # of modules that exchange something, by name
    norms: Mapping[str, tuple[float, int]]  # over all heads: epsilon, and what is added to the weight

    def fits(self, num_devices: int, specs: Mapping[str, AttentionSpec]) -> bool:
        """Whether it divides the parameters evenly, and attention, if at all, into whole heads."""
        return all(parameter.fits(num_devices) for parameter in self.parameters.values()) and all(
            spec.num_heads % num_devices == 0
            and (spec.num_kv_heads % num_devices == 0 or num_devices % spec.num_kv_heads == 0)
            for name, spec in specs.items()
            if any(other.startswith(f"{name}.") for other in self.parameters)
        )


def read_plan(model: PreTrainedModel, specs: Mapping[str, AttentionSpec]) -> Plan:
    """`specs`: of the modules that attend, by name. Raises UnsupportedModel for what isn't known here."""
    inner = _inner_plan(model)
    parameters: dict[str, DividedParameter] = {}
    vocabulary = dict(_vocabulary(model, parameters))
    styles = {name: inner[_pattern(name)] for name, _ in model.named_modules() if _pattern(name) in inner}
    norms = _divide_heads(model, styles, specs)
    for name, style in styles.items():
        parameters.update(_of_module(name, model.get_submodule(name), style, specs))
    for name, parameter in model.named_parameters():
        style = inner.get(_pattern(name))
        if style == ONCE:
            parameters[name] = DividedParameter(0, None)
        elif style is not None and parameter.ndim > 1:
            parameters[name] = _of_matrix(tuple(parameter.shape), style)
        elif style in _COLUMNS:
            parameters[name] = DividedParameter(0, parameter.shape[0], _COLUMNS[style])
    _check_experts(model, styles, parameters)
    styles = {name: style for name, style in styles.items() if style not in _WHOLE}
    return Plan(parameters, {**vocabulary, **styles}, norms)


def check_has_plan(model: PreTrainedModel) -> None:
    """Raises UnsupportedModel if it has none, or one with a style that isn't known here."""
    styles = _inner_plan(model).values()
    if not styles:
        raise UnsupportedModel(
            f"{type(model).__name__} can't be divided among devices: transformers has no plan for it. "
            "Use --tensor-parallel-size 1.",
            advice=None,
        )
    if unknown := sorted(set(styles) - _KNOWN):
        raise UnsupportedModel(
            f"{type(model).__name__} can't be divided among devices: transformers' plan for it has a style "
            f"that the engine doesn't know, {unknown[0]!r}. Use --tensor-parallel-size 1.",
            advice=None,
        )


def _inner_plan(model: PreTrainedModel) -> dict[str, str]:
    """By pattern, without embedding and head: see `_vocabulary`."""
    named: dict[str, str] = dict(getattr(model, "_tp_plan", None) or {})
    inner = {key: style for key, style in named.items() if not _is_outermost(model, key)}
    own = OWN_PLANS.get(str(model.config.model_type), {})
    return inner or {f"{model.base_model_prefix}.{key}": style for key, style in own.items()}


def experts_of(model: PreTrainedModel) -> list[nn.Module]:
    plan = _inner_plan(model)
    return [module for name, module in model.named_modules() if plan.get(_pattern(name)) == "moe_tp_experts"]


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _is_outermost(model: PreTrainedModel, key: str) -> bool:
    """Embedding and head are divided by a rule of this engine's own: see `_vocabulary`."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[no-untyped-call]
    return any(_pattern(name) == key and module in ends for name, module in model.named_modules())


def _vocabulary(model: PreTrainedModel, parameters: dict[str, DividedParameter]) -> Iterator[tuple[str, str]]:
    """Embedding and head, which may be the same tensor: both are divided, or both are whole."""
    embedding: Any = model.get_input_embeddings()  # type: ignore[no-untyped-call]
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(embedding, nn.Embedding) or type(head) is not nn.Linear:
        return
    for name, module in model.named_modules():
        if module is embedding or module is head:
            for own, tensor in module.named_parameters(recurse=False):
                parameters[f"{name}.{own}"] = DividedParameter(0, tensor.shape[0], is_vocabulary=True)
            yield name, VOCABULARY


def _of_module(
    name: str, module: nn.Module, style: str, specs: Mapping[str, AttentionSpec]
) -> Iterator[tuple[str, DividedParameter]]:
    if style == OVER_HEADS:
        (size,) = module.get_parameter("weight").shape
        yield f"{name}.weight", DividedParameter(0, size, num_heads=_num_kv_heads(name, size, specs))
    if style not in _COLUMNS and style not in _ROWS:
        return
    if not isinstance(module, nn.Linear):
        raise UnsupportedModel(
            f"This model can't be divided among devices: transformers' plan divides {name}, which is a "
            f"{type(module).__name__} and no linear layer. Use --tensor-parallel-size 1.",
            advice=None,
        )
    weight = f"{name}.weight"
    num_heads = _num_kv_heads(name, module.out_features, specs) if style == "colwise" else 0
    if style in _COLUMNS:
        for own, _ in module.named_parameters(recurse=False):
            yield f"{name}.{own}", DividedParameter(0, module.out_features, _COLUMNS[style], num_heads)
        return
    yield weight, DividedParameter(1, module.in_features, _ROWS[style])
    if module.bias is not None:
        yield f"{name}.bias", DividedParameter(0, None)


def _num_kv_heads(name: str, size: int, specs: Mapping[str, AttentionSpec]) -> int:
    """Of how many key-value heads so many features of a layer are; 0 if they are something else."""
    spec = next((spec for own, spec in specs.items() if name.startswith(f"{own}.")), None)
    is_kv = spec is not None and size == spec.num_kv_heads * spec.head_dim
    return spec.num_kv_heads if spec is not None and is_kv else 0


def _divide_heads(
    model: PreTrainedModel, styles: dict[str, str], specs: Mapping[str, AttentionSpec]
) -> dict[str, tuple[float, int]]:
    """Where a plan gathers queries and keys for norms over all heads, divide heads and norms instead.

    Changes `styles`. Returns the norms' formulas.
    """
    norms: dict[str, tuple[float, int]] = {}
    formulas: dict[type, tuple[float, int] | None] = {}
    for place, spec in specs.items():
        inside = {name: styles.get(name) for name, _ in _inside(model, place)}
        sizes = {count * spec.head_dim for count in (spec.num_heads, spec.num_kv_heads)}
        gathered = [name for name, style in inside.items() if style in GATHERS]
        outputs = [name for name, style in inside.items() if style in SPLITS_INPUT]
        found = {
            name: formula
            for name, module in _inside(model, place)
            if _is_norm_of(module, sizes) and (formula := _formula_of(module, formulas)) is not None
        }
        if found and len(outputs) == 1 and all(_out_features(model, name) in sizes for name in gathered):
            styles.update(dict.fromkeys(gathered, "colwise"))
            styles.update(dict.fromkeys(outputs, "rowwise"))
            styles.update(dict.fromkeys(found, OVER_HEADS))
            norms.update(found)
    return norms


def _inside(model: PreTrainedModel, place: str) -> list[tuple[str, nn.Module]]:
    return [(f"{place}.{name}", module) for name, module in model.get_submodule(place).named_children()]


def _out_features(model: PreTrainedModel, name: str) -> int | None:
    return getattr(model.get_submodule(name), "out_features", None)


def _is_norm_of(module: nn.Module, sizes: set[int]) -> bool:
    return may_be_norm(module) and module.get_parameter("weight").shape[0] in sizes


def _formula_of(module: nn.Module, known: dict[type, tuple[float, int] | None]) -> tuple[float, int] | None:
    """By class: all norms of a model have the same epsilon."""
    if type(module) not in known:
        known[type(module)] = norm_formula(copy.deepcopy(module).to_empty(device="cpu"))
    return known[type(module)]


def _of_matrix(shape: tuple[int, ...], style: str) -> DividedParameter:
    axis, packed = (_OUTPUTS, _COLUMNS[style]) if style in _COLUMNS else (_INPUTS, _ROWS[style])
    axis += len(shape)
    return DividedParameter(axis, shape[axis], packed)


def _check_experts(
    model: PreTrainedModel, styles: Mapping[str, str], parameters: Mapping[str, DividedParameter]
) -> None:
    """What experts add beside their divided matrices would be added by each device."""
    for name, style in styles.items():
        if style != "moe_tp_experts":
            continue
        for own, _ in model.get_submodule(name).named_parameters():
            if f"{name}.{own}" not in parameters:
                raise UnsupportedModel(
                    f"{type(model).__name__} can't be divided among devices: transformers' plan leaves "
                    f"{name}.{own} whole, which each device would add. Use --tensor-parallel-size 1.",
                    advice=None,
                )
