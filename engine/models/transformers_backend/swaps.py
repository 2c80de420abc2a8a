"""Replaces parts of a loaded model by this engine's faster ones, where both are found to compute the same.

A part is recognised by what it does, tried on numbers, not by its name.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from engine.models.activations import ACTIVATIONS, Activation
from engine.models.layers.linear import Linear
from engine.models.layers.norm import RMSNorm
from engine.models.layers.weights import StoredLayer
from engine.models.operators import find_operators
from engine.models.tensor_source import ALL
from engine.models.transformers_backend.divided_norm import DividedNorm

_MAX_EPS = 1e-2


class _ModuleSource:
    """A loaded module's parameters as a source of tensors."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self.names = frozenset(self._parameters)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._parameters[name].shape)

    def tensor(self, name: str, *, rows: slice = ALL, columns: slice = ALL) -> torch.Tensor:
        """Once: the model then has no other reference to it."""
        return self._parameters.pop(name).detach()


class _Linear(Linear):
    """With a stand-in for the weight, whose type and device some models look at."""

    weight: torch.Tensor


class _FusedPart(nn.Module):
    """One of several linear layers on the same input: the first that is asked computes them all."""

    def __init__(self, product: _FusedProduct, part: int, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight
        self._product = [product]  # not registered as a module several times
        self._part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._product[0].part(x, self._part)


class _FusedProduct(nn.Module):
    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear = linear
        self._sizes = linear.out_features
        self._input: torch.Tensor | None = None
        self._outputs: list[torch.Tensor | None] = []

    def part(self, x: torch.Tensor, index: int) -> torch.Tensor:
        output = self._outputs[index] if x is self._input else None
        if output is None:
            self._input = x
            self._outputs = list(self.linear(x).split(self._sizes, dim=-1))
            output = self._outputs[index]
        self._outputs[index] = None
        if not any(one is not None for one in self._outputs):
            self._input = None  # nothing is kept beyond its use
        assert output is not None  # noqa: S101
        return output


class _Norm(nn.Module):
    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(weight.shape[0], eps)
        self.norm.load("weight", [weight])
        self._size = weight.shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.reshape(-1, self._size).contiguous()).view(x.shape)  # type: ignore[no-any-return]


class _GatedMLP(nn.Module):
    def __init__(self, product: _FusedProduct, down: nn.Module, activation: Activation) -> None:
        super().__init__()
        self._product = product
        self._down = down
        self._activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate_up = self._product.linear(x.reshape(-1, x.shape[-1]))
        operators = find_operators(x.device.type, x.dtype)
        return self._down(operators.activate_and_multiply(gate_up, self._activation)).view(x.shape)  # type: ignore[no-any-return]


def swap(model: PreTrainedModel, groups: Sequence[tuple[str, ...]], *, fuses: bool) -> None:
    """`groups`: names of linear layers that run on the same input; `fuses`: as one product."""
    _swap_linears(model, [*groups, *_head_of(model)], fuses=fuses)
    if fuses:
        _swap_mlps(model)
    _swap_norms(model)


def _head_of(model: PreTrainedModel) -> list[tuple[str, ...]]:
    head: Any = None if model.base_model is model else model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return [(name,) for name, module in model.named_modules() if module is head and type(head) is nn.Linear]


def _swap_norms(model: PreTrainedModel) -> None:
    formulas: dict[type, tuple[float, int] | None] = {}  # by class, which may be used with several epsilons
    for name, module in list(model.named_modules()):
        if not may_be_norm(module):
            continue
        if type(module) not in formulas:
            formulas[type(module)] = norm_formula(module)
        formula = formulas[type(module)]
        if formula is not None and formula[0] in _floats(module):
            weight = module.weight.detach()
            model.set_submodule(name, _Norm(weight + 1 if formula[1] else weight, formula[0]))


def may_be_norm(module: nn.Module) -> bool:
    if isinstance(module, DividedNorm):
        return False
    parameters = dict(module.named_parameters())
    if list(parameters) != ["weight"] or parameters["weight"].ndim != 1 or list(module.children()):
        return False
    return len(inspect.signature(module.forward).parameters) == 1  # some take a gate, too


def _floats(module: nn.Module) -> Iterator[float]:
    values = vars(module).values()
    return (value for value in values if isinstance(value, float) and 0 < value < _MAX_EPS)


def norm_formula(module: Any) -> tuple[float, int] | None:
    """Its epsilon and what is added to its weight, if it is root-mean-square normalisation."""
    plain: Any = copy.deepcopy(module).float()
    size = plain.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(3, size, generator=generator) * 1e-2).to(plain.weight.device)
    weight = torch.randn(size, generator=generator).to(x.device)
    plain.weight.data = weight.clone()
    expected = plain(x)
    if not isinstance(expected, torch.Tensor) or expected.shape != x.shape:
        return None
    for eps in _floats(module):
        scaled = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
        for offset in (0, 1):
            if torch.allclose(scaled * (weight + offset), expected, rtol=1e-4, atol=1e-5):
                return eps, offset
    return None


def _swap_linears(model: PreTrainedModel, groups: Sequence[tuple[str, ...]], *, fuses: bool) -> None:
    source = _ModuleSource(model)
    for names in groups if fuses else [(name,) for group in groups for name in group]:
        layers: list[Any] = [model.get_submodule(name) for name in names]
        linear = _Linear(
            layers[0].in_features,
            [layer.out_features for layer in layers],
            bias=layers[0].bias is not None,
        )
        weight = layers[0].weight
        linear.load_from(StoredLayer(source, names, device=weight.device, dtype=weight.dtype))
        linear.weight = weight.new_empty(0)
        if len(names) == 1:
            model.set_submodule(names[0], _with_hooks_of(layers[0], linear))
            continue
        product = _FusedProduct(linear)
        for index, (name, layer) in enumerate(zip(names, layers, strict=True)):
            model.set_submodule(name, _with_hooks_of(layer, _FusedPart(product, index, linear.weight)))
        model.get_submodule(names[0]).add_module("product", product)


def _with_hooks_of(layer: nn.Module, replacement: nn.Module) -> nn.Module:
    """By which several devices exchange what they compute."""
    replacement._forward_pre_hooks.update(layer._forward_pre_hooks)
    replacement._forward_hooks.update(layer._forward_hooks)
    return replacement


def _swap_mlps(model: PreTrainedModel) -> None:
    """Modules of three linear layers, two of them fused, that compute down(act(gate(x)) * up(x))."""
    known: dict[tuple[object, ...], Activation | None] = {}
    for name, module in list(model.named_modules()):
        parts = _mlp_parts(module)
        if parts is None:
            continue
        kind = (type(module), *map(type, module.children()))
        if kind not in known:
            known[kind] = _activation_of(module, *parts, dtype=model.dtype, device=model.device)
        activation = known[kind]
        if activation is not None:
            model.set_submodule(name, _GatedMLP(*parts, activation))


def _mlp_parts(module: nn.Module) -> tuple[_FusedProduct, nn.Module] | None:
    fused = [child for child in module.children() if isinstance(child, _FusedPart)]
    others = [child for child in module.children() if isinstance(child, Linear)]
    if len(fused) != 2 or len(others) != 1 or fused[0]._product[0] is not fused[1]._product[0]:
        return None
    if any(one._forward_hooks for one in fused):
        return None
    product = fused[0]._product[0]
    gate, up = product.linear.out_features
    return (product, others[0]) if gate == up == others[0].in_features else None


def _activation_of(
    module: nn.Module, product: _FusedProduct, down: nn.Module, *, dtype: torch.dtype, device: torch.device
) -> Activation | None:
    parts = [*module.children(), *vars(module).values()]
    activation = next((name for part in parts if (name := _named(part)) is not None), None)
    if activation is None:
        return None
    x = torch.randn(1, 3, product.linear.in_features, generator=torch.Generator().manual_seed(0))
    x = x.to(dtype=dtype, device=device)
    expected, found = module(x).float(), _GatedMLP(product, down, activation)(x).float()
    tolerance = 1e-4 if dtype is torch.float32 else 3e-2
    return activation if (found - expected).norm() <= tolerance * expected.norm() else None


def _named(part: object) -> Activation | None:
    """Which activation it is, if it is one."""
    if not callable(part) or isinstance(part, Linear | _FusedPart | type):
        return None
    x = torch.linspace(-6, 6, 97)
    try:
        y = part(x)
    except Exception:  # it takes something else
        return None
    return next((name for name, function in ACTIVATIONS.items() if torch.equal(function(x), y)), None)
