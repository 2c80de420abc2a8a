"""PyTorch's operators are the reference for the kernels, and run what those can't."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from engine.models.activations import Activation
from engine.models.operators import Operators, TorchOperators, find_operators


@pytest.fixture(params=["pytorch", "native", "triton"])
def operators(request: pytest.FixtureRequest) -> Operators:
    if request.param == "pytorch":
        return TorchOperators()
    if request.param == "triton":
        request.getfixturevalue("triton_on_cpu")
    return find_operators("cpu", torch.float32)


@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_activation(operators: Operators, activation: Activation) -> None:
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "relu": F.relu,
    }
    gate_up = torch.randn(3, 80)
    expected = functions[activation](gate_up[:, :40]) * gate_up[:, 40:]
    torch.testing.assert_close(operators.activate_and_multiply(gate_up, activation), expected)


@pytest.mark.parametrize(("head_dim", "size"), [(32, 32), (32, 12), (600, 600)])
@pytest.mark.parametrize("has_norm", [False, True])
def test_heads_of_any_size_rotated_in_part_or_whole(
    operators: Operators, head_dim: int, size: int, has_norm: bool
) -> None:
    torch.manual_seed(0)
    heads = torch.randn(3, 2 + 2, head_dim)
    weights = torch.randn(3, head_dim) if has_norm else None
    cos, sin = torch.randn(2, 3, 1, size)
    keys, values = torch.zeros(2, 1, 8, head_dim)
    slots = torch.tensor([7, 0, 3])
    turned = heads[:, :3] if weights is None else F.rms_norm(heads[:, :3], (head_dim,), None, 1e-6) * weights
    first, second = turned[..., : size // 2], turned[..., size // 2 : size]
    swapped = torch.cat((second, first), -1)
    turned = torch.cat((turned[..., :size] * cos + swapped * sin, turned[..., size:]), -1)
    stored = heads[:, 3:].transpose(0, 1).clone()
    queries = operators.rotate_and_store(heads, weights, cos, sin, slots, keys, values, eps=1e-6)
    torch.testing.assert_close(queries, turned[:, :2])
    torch.testing.assert_close(keys[:, slots], turned[:, 2:].transpose(0, 1))
    assert torch.equal(values[:, slots], stored)


def test_there_is_one_table_for_a_device_and_element_type() -> None:
    assert find_operators("cpu", torch.float32) is find_operators("cpu", torch.float32)
    assert isinstance(find_operators("cpu", torch.float16), TorchOperators)
