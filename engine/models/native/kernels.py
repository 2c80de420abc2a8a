"""The compiled kernels as functions of tensors, one object per element type."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import ClassVar

import torch

from engine.models.activations import Activation
from engine.models.attention.spec import AttentionSpec
from engine.models.native.compiler import load_library

_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
_MAX_HEAD_DIM = 512
_ACTIVATIONS: dict[Activation, int] = {"silu": 0, "gelu_tanh": 1, "gelu": 2}  # as kernels.cpp numbers them

_P, _I, _L, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_ARGUMENTS = {
    "decode_attention": (_P, _L, _P, _P, _P, _P, _P, _L, _I, _I, _I, _L, _L, _F, _L, _F, _P, _I, _P),
    "causal_softmax": (_P, _L, _L, _L, _F, _L, _F, _P, _I),
    "rotate_and_store": (_P, _P, _P, _P, _P, _P, _P, _L, _I, _I, _I, _I, _L, _F, _I),
    "add_and_normalise": (_P, _P, _P, _L, _L, _F, _I, _P),
    "activate_and_multiply": (_P, _L, _L, _I, _I, _P),
    "forbid_tokens": (_P, _P, _P, _L, _L, _L, _I),
    "draw_tokens": (_P, _P, _P, _P, _P, _L, _L, _I, _P),
}


@cache
def find_kernels(device_type: str, dtype: torch.dtype) -> Kernels | None:
    """The kernels for such tensors; None if there are none and PyTorch's operators must be used."""
    if device_type != "cpu" or dtype not in _NAMES:
        return None
    library = load_library()
    return None if library is None else Kernels(library, dtype)


def fits_head_dim(head_dim: int) -> bool:
    return head_dim % 2 == 0 and head_dim <= _MAX_HEAD_DIM


class Kernels:
    """All tensors must be contiguous, on the CPU, and of this element type (or int64).

    Implements engine.models.operators.FusedOperators, too.
    """

    activations: ClassVar[frozenset[Activation]] = frozenset(_ACTIVATIONS)

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        functions = {}
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, f"{name}_{_NAMES[dtype]}")
            function.argtypes, function.restype = arguments, None
            functions[name] = function
        self._decode_attention = functions["decode_attention"]
        self._causal_softmax = functions["causal_softmax"]
        self._rotate_and_store = functions["rotate_and_store"]
        self._add_and_normalise = functions["add_and_normalise"]
        self._activate_and_multiply = functions["activate_and_multiply"]
        self._forbid_tokens = functions["forbid_tokens"]
        self._draw_tokens = functions["draw_tokens"]

    def decode_attention(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        blocks: torch.Tensor,
        starts: torch.Tensor,
        contexts: torch.Tensor,
        spec: AttentionSpec,
        *,
        sinks: torch.Tensor | None = None,
        block_size: int,
        out: torch.Tensor,
    ) -> None:
        """Attend one query per row to the first `contexts[row]` positions of its blocks.

        queries [R, heads, head_dim], contiguous but for the stride of its rows; keys and values [kv_heads,
        slots, head_dim]; a row's blocks begin at `blocks[starts[row]]`, all int64; sinks float32 [heads];
        out [R, heads * head_dim] is written.
        """
        num_rows, num_heads, head_dim = queries.shape
        kv_heads, slots, _ = keys.shape
        self._decode_attention(
            queries.data_ptr(),
            queries.stride(0),
            keys.data_ptr(),
            values.data_ptr(),
            blocks.data_ptr(),
            starts.data_ptr(),
            contexts.data_ptr(),
            num_rows,
            kv_heads,
            num_heads // kv_heads,
            head_dim,
            slots,
            block_size,
            spec.scale,
            spec.window or 0,
            spec.softcap or 0.0,
            None if sinks is None else sinks.data_ptr(),
            torch.get_num_threads(),
            out.data_ptr(),
        )

    def causal_softmax(
        self, scores: torch.Tensor, spec: AttentionSpec, *, scale: float, sinks: torch.Tensor | None = None
    ) -> None:
        """softmax of `scale` * scores [heads, rows, columns] with the spec's cap and window, in place.

        The last row sees the last column, each before it one less; columns that a row doesn't see become 0.
        sinks float32 [heads] take part in the sum.
        """
        num_heads, num_rows, num_columns = scores.shape
        self._causal_softmax(
            scores.data_ptr(),
            num_heads,
            num_rows,
            num_columns,
            scale,
            spec.window or 0,
            spec.softcap or 0.0,
            None if sinks is None else sinks.data_ptr(),
            torch.get_num_threads(),
        )

    def can_rotate(self, head_dim: int, size: int) -> bool:
        return fits_head_dim(head_dim) and size % 2 == 0

    def rotate_and_store(
        self,
        heads: torch.Tensor,
        weights: torch.Tensor | None,
        cos: torch.Tensor,
        signed_sin: torch.Tensor,
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        eps: float,
    ) -> torch.Tensor:
        """See engine.models.operators.Operators. The queries stay in `heads`."""
        num_rows, num_all, head_dim = heads.shape
        kv_heads = keys.shape[0]
        self._rotate_and_store(
            heads.data_ptr(),
            None if weights is None else weights.data_ptr(),
            cos.data_ptr(),
            signed_sin.data_ptr(),
            slots.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            num_rows,
            num_all - 2 * kv_heads,
            kv_heads,
            head_dim,
            cos.shape[-1],
            keys.shape[1],
            eps,
            torch.get_num_threads(),
        )
        return heads[:, : num_all - 2 * kv_heads]

    def add_and_normalise(
        self, residual: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, *, eps: float
    ) -> torch.Tensor:
        """Add `delta` to `residual` [T, size] in place; return the sum normalised and scaled by `weight`."""
        out = torch.empty_like(residual)
        num_rows, size = residual.shape
        self._add_and_normalise(
            residual.data_ptr(),
            None if delta is None else delta.data_ptr(),
            weight.data_ptr(),
            num_rows,
            size,
            eps,
            torch.get_num_threads(),
            out.data_ptr(),
        )
        return out

    def activate_and_multiply(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        """activation(first half) * second half of the last dimension: [T, 2 * size] → [T, size]."""
        num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(num_rows, size)
        self._activate_and_multiply(
            gate_up.data_ptr(),
            num_rows,
            size,
            _ACTIVATIONS[activation],
            torch.get_num_threads(),
            out.data_ptr(),
        )
        return out

    def forbid_tokens(self, logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
        """Set logits [S, vocab_size] of some rows (int64 [R]) to minus infinity where a bit is not set.

        bits int32 [R, words]: the lowest bit of the first word is the first token's.
        """
        num_rows, num_words = bits.shape
        self._forbid_tokens(
            logits.data_ptr(),
            rows.data_ptr(),
            bits.data_ptr(),
            num_rows,
            num_words,
            logits.shape[-1],
            torch.get_num_threads(),
        )

    def draw_tokens(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        *,
        temperature: torch.Tensor,
        min_p: torch.Tensor,
        uniform: torch.Tensor,
    ) -> torch.Tensor:
        """One token, int64 [R], for each of the `rows` (int64 [R]) of logits [S, vocab_size].

        temperature and min_p float32 [R]; uniform float64 [R], in [0, 1). At least one logit of each row is
        finite, and none is infinity.
        """
        tokens = torch.empty_like(rows)
        self._draw_tokens(
            logits.data_ptr(),
            rows.data_ptr(),
            temperature.data_ptr(),
            min_p.data_ptr(),
            uniform.data_ptr(),
            len(rows),
            logits.shape[-1],
            torch.get_num_threads(),
            tokens.data_ptr(),
        )
        return tokens
