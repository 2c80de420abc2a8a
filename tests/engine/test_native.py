"""The compiled kernels against PyTorch in float64, and running without them."""

from __future__ import annotations

import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from engine.models.activations import Activation
from engine.models.attention.spec import AttentionSpec
from engine.models.native import compiler
from engine.models.native.kernels import Kernels, find_kernels, fits_head_dim
from engine.models.operators import TorchOperators
from tests.engine.test_attention import plain

DTYPES = [torch.float32, torch.bfloat16]
PLAIN = AttentionSpec(num_heads=1, num_kv_heads=1, head_dim=64, scale=0.125)

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="kernels are compiled by g++ on Linux"
)


def kernels_for(dtype: torch.dtype) -> Kernels:
    kernels = find_kernels("cpu", dtype)
    assert kernels is not None
    return kernels


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """`expected` in float64: differs by float32's rounding, or by the single rounding to bfloat16."""
    tolerance = 2.0**-8 if actual.dtype is torch.bfloat16 else 2e-6
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size"),
    [(16, 8, 128, 16), (4, 4, 64, 32), (9, 3, 80, 7), (24, 2, 32, 1), (2, 1, 256, 48), (1, 1, 2, 16)],
)
def test_decode_attention(
    dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, block_size: int
) -> None:
    check_decodes(
        dtype,
        [1, block_size, block_size + 1, 70],
        AttentionSpec(num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, scale=head_dim**-0.5),
        block_size=block_size,
    )


@needs_compiler
@pytest.mark.parametrize("contexts", [[3000], [1300, 1], [255], [512, 700]])
@pytest.mark.parametrize("window", [None, 100, 600])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_a_long_context_is_divided_over_threads(
    contexts: list[int], window: int | None, has_sinks: bool
) -> None:
    """If there are fewer rows and heads than threads. A sink counts once; a short context has empty parts."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(7)
    try:
        for dtype, heads, kv_heads, dim in ((torch.float32, 10, 1, 64), (torch.bfloat16, 4, 2, 40)):
            spec = AttentionSpec(
                num_heads=heads,
                num_kv_heads=kv_heads,
                head_dim=dim,
                scale=0.125,
                window=window,
                has_sinks=has_sinks,
            )
            check_decodes(dtype, contexts, spec, block_size=16)
    finally:
        torch.set_num_threads(num_threads)


def check_decodes(dtype: torch.dtype, contexts: list[int], spec: AttentionSpec, *, block_size: int) -> None:
    torch.manual_seed(0)
    heads, kv_heads, head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
    num_blocks = max(contexts) // block_size + 10
    keys, values = torch.randn(2, kv_heads, num_blocks * block_size, head_dim).to(dtype)
    rows = torch.randn(len(contexts), heads + 3, head_dim).to(dtype)
    rows[:, :heads] *= 3  # sharp enough for the running maximum to move
    queries = rows[:, :heads]  # of a wider tensor
    sinks = torch.randn(heads).mul(3) if spec.has_sinks else None
    tables = [torch.randperm(num_blocks)[: -(-context // block_size)] for context in contexts]
    out = torch.full((len(contexts), heads * head_dim), torch.nan).to(dtype)
    kernels_for(dtype).decode_attention(
        queries,
        keys,
        values,
        torch.cat(tables),
        torch.tensor([0, *(len(table) for table in tables[:-1])]).cumsum(0),
        torch.tensor(contexts),
        spec,
        sinks=sinks,
        block_size=block_size,
        out=out,
    )
    for row, (context, table) in enumerate(zip(contexts, tables, strict=True)):
        slots = (table[:, None] * block_size + torch.arange(block_size)).flatten()[:context]
        k, v = (x[:, slots].transpose(0, 1) for x in (keys, values))
        assert_close(out[row], plain(spec, queries[row : row + 1], k, v, sinks)[0])


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "num_columns"), [(1, 1), (1, 70), (5, 5), (7, 40)])
def test_causal_softmax(dtype: torch.dtype, num_rows: int, num_columns: int) -> None:
    torch.manual_seed(0)
    scores = torch.randn(3, num_rows, num_columns).mul(20).to(dtype)
    hidden = torch.ones(num_rows, num_columns, dtype=torch.bool).triu(1 + num_columns - num_rows)
    expected = scores.double().mul(0.3).masked_fill(hidden, -torch.inf).softmax(-1)
    kernels_for(dtype).causal_softmax(scores, PLAIN, scale=0.3)
    assert_close(scores, expected)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 4, 50])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_softmax_with_window_cap_and_sinks(
    dtype: torch.dtype, window: int | None, softcap: float | None, has_sinks: bool
) -> None:
    torch.manual_seed(0)
    scores = torch.randn(3, 7, 40).mul(20).to(dtype)
    sinks = torch.tensor([-2.0, 0.0, 9.0]) if has_sinks else None
    spec = replace(PLAIN, window=window, softcap=softcap, has_sinks=has_sinks)
    expected = scores.double() * 0.3
    if softcap is not None:
        expected = softcap * torch.tanh(expected / softcap)
    row, column = torch.arange(33, 40)[:, None], torch.arange(40)
    hidden = (column > row) | (column <= row - (window or 100))
    expected = expected.masked_fill(hidden, -torch.inf)
    if sinks is not None:
        expected = torch.cat((expected, sinks.double().view(3, 1, 1).expand(3, 7, 1)), -1)
    kernels_for(dtype).causal_softmax(scores, spec, scale=0.3, sinks=sinks)
    assert_close(scores, expected.softmax(-1)[..., :40])


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_norm", [True, False])
@pytest.mark.parametrize("size", [32, 20])
@pytest.mark.parametrize("num_rows", [1, 5])
def test_rotate_and_store(dtype: torch.dtype, has_norm: bool, size: int, num_rows: int) -> None:
    """All of a head, or only its first dimensions."""
    torch.manual_seed(0)
    num_heads, kv_heads, head_dim, eps = 4, 2, 32, 1e-6
    heads = torch.randn(num_rows, num_heads + 2 * kv_heads, head_dim).to(dtype)
    weights = torch.randn(num_heads + kv_heads, head_dim).to(dtype) if has_norm else None
    cos, sin = torch.randn(2, num_rows, 1, size).to(dtype)
    keys, values = torch.full((2, kv_heads, 64, head_dim), torch.nan).to(dtype)
    slots = torch.tensor([63, 0, 17, 5, 40])[:num_rows]
    x = heads.double()
    turned = x[:, : num_heads + kv_heads]
    if weights is not None:
        turned = F.rms_norm(turned, (head_dim,), None, eps) * weights.double()
    first = turned[..., :size]
    first = first * cos.double() + first.roll(size // 2, -1) * sin.double()
    turned = torch.cat((first, turned[..., size:]), -1)
    queries = kernels_for(dtype).rotate_and_store(heads, weights, cos, sin, slots, keys, values, eps=eps)
    assert_close(queries, turned[:, :num_heads])
    assert_close(keys[:, slots], turned[:, num_heads:].transpose(0, 1))
    assert_close(values[:, slots], x[:, -kv_heads:].transpose(0, 1))
    untouched = [slot for slot in range(64) if slot not in slots]
    assert keys[:, untouched].isnan().all() and values[:, untouched].isnan().all()


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 9])
def test_add_and_normalise(dtype: torch.dtype, num_rows: int) -> None:
    torch.manual_seed(0)
    residual, delta = torch.randn(2, num_rows, 100).to(dtype)
    weight = torch.randn(100).to(dtype)
    added = (residual.double() + delta.double()).to(dtype)
    before = residual.clone()
    alone = kernels_for(dtype).add_and_normalise(residual, None, weight, eps=1e-5)
    assert_close(alone, F.rms_norm(before.double(), (100,), weight.double(), 1e-5))
    assert torch.equal(residual, before)
    both = kernels_for(dtype).add_and_normalise(residual, delta, weight, eps=1e-5)
    assert_close(both, F.rms_norm(added.double(), (100,), weight.double(), 1e-5))
    assert_close(residual, added.double())


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 9])
@pytest.mark.parametrize("activation", sorted(Kernels.activations))
def test_activate_and_multiply(dtype: torch.dtype, num_rows: int, activation: Activation) -> None:
    torch.manual_seed(0)
    gate_up = torch.randn(num_rows, 200).mul(4).to(dtype)
    gate_up[0, :6] = torch.tensor([-1000.0, -90.0, 90.0, 1000.0, 1e-3, -0.2])
    expected = TorchOperators().activate_and_multiply(gate_up.double(), activation)
    assert_close(kernels_for(dtype).activate_and_multiply(gate_up, activation), expected)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [5, 64, 101])
def test_forbid_tokens(dtype: torch.dtype, vocab_size: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, vocab_size).to(dtype)
    rows = torch.tensor([3, 0])
    bits = torch.randint(-(2**31), 2**31, (2, -(-vocab_size // 32)), dtype=torch.int32)
    bits[0, 0] = -1
    expected = logits.clone()
    for row, words in zip(rows.tolist(), bits.tolist(), strict=True):
        for token in range(vocab_size):
            if not words[token // 32] >> token % 32 & 1:
                expected[row, token] = -torch.inf
    kernels_for(dtype).forbid_tokens(logits, rows, bits)
    assert torch.equal(logits, expected)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [1, 33, 512, 1700])
def test_draw_tokens(dtype: torch.dtype, vocab_size: int) -> None:
    """The token where the sum of weights passes a fraction of the total; never an impossible one."""
    torch.manual_seed(0)
    logits = torch.randn(40, vocab_size).mul(4).to(dtype)
    logits[:, 1:][torch.rand(40, vocab_size - 1) < 0.7] = -torch.inf
    rows = torch.randperm(40)[:30]
    temperature = torch.rand(30) * 2 + 0.05
    min_p = torch.tensor([0.0, 0.1, 1.0] * 10)
    uniform = torch.rand(30, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, 1 - 2**-53])
    drawn = kernels_for(dtype).draw_tokens(
        logits, rows, temperature=temperature, min_p=min_p, uniform=uniform
    )
    chosen = logits[rows].double()
    weights = ((chosen - chosen.amax(-1, keepdim=True)) / temperature.double()[:, None]).exp()
    weights[weights < min_p.double()[:, None] * (1 - 1e-6)] = 0
    before = weights.cumsum(-1) / weights.sum(-1, keepdim=True)
    at = drawn[:, None]
    assert (weights.gather(-1, at) > 0).all()
    assert (before.gather(-1, at)[:, 0] >= uniform - 1e-6).all()
    shares = weights / weights.sum(-1, keepdim=True)
    assert ((before - shares).gather(-1, at)[:, 0] <= uniform + 1e-6).all()


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_nans_stay_nans(dtype: torch.dtype) -> None:
    """A broken row must be seen as broken, and only that row."""
    x = torch.ones(2, 64).to(dtype)
    x[0, 3] = torch.nan
    kernels = kernels_for(dtype)
    normalised = kernels.add_and_normalise(x.clone(), None, torch.ones(64).to(dtype), eps=1e-6)
    gated = kernels.activate_and_multiply(x.clone(), "silu")
    keys = values = torch.ones(1, 2, 64).to(dtype)
    out = torch.empty_like(x)
    one = torch.tensor([1, 1])
    kernels.decode_attention(
        x[:, None],
        keys,
        values,
        torch.zeros(2, dtype=torch.int64),
        one - 1,
        one,
        PLAIN,
        block_size=2,
        out=out,
    )
    assert normalised[0].isnan().all() and not normalised[1].isnan().any()
    assert gated[0, 3].isnan() and not gated[1].isnan().any()
    assert out[0].isnan().all() and not out[1].isnan().any()


def test_there_are_no_kernels_for_other_tensors() -> None:
    assert find_kernels("cuda", torch.bfloat16) is None
    assert find_kernels("cpu", torch.float16) is None
    assert not fits_head_dim(514) and fits_head_dim(512) and not fits_head_dim(33) and fits_head_dim(128)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (compiler.SWITCH, "0", "is 0"),
        ("CXX", "no-such-compiler", "no g++"),
        ("CXX", "false", "failed"),
    ],
)
def test_without_a_compiler(
    name: str,
    value: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    if sys.platform != "linux":
        pytest.skip("other systems never compile")
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with caplog.at_level(logging.INFO):
        assert compiler.load_library.__wrapped__() is None
    assert message in caplog.text


@needs_compiler
def test_a_directory_that_others_can_write_to_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Anyone who can write there could have their own code loaded."""
    (tmp_path / "berth").mkdir()
    (tmp_path / "berth").chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiler.load_library.__wrapped__() is not None
    assert not list((tmp_path / "berth").iterdir())


def test_a_user_without_a_home_directory_has_a_cache_for_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    directory = compiler._cache_directory()
    assert directory.is_dir()
    directory.rmdir()
