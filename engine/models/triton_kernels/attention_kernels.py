"""Attention over paged keys and values, read in place: one kernel for decodes and for prefills.

A program holds the queries of a few tokens for all query heads that share a key-value head (GQA), as one
tile, and walks over the keys that they see with a running softmax (Dao et al. 2022). A long context of few
decodes is split over several programs, whose results `combine` joins.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _first_tile(first_rows, sequence, num_decodes, TOKENS: tl.constexpr):
    """The first tile of a sequence after the decodes, which have a row each; some tiles are empty."""
    row = tl.load(first_rows + sequence).to(tl.int32)
    return (row - num_decodes) // TOKENS + sequence - num_decodes


@triton.jit
def _find_sequence(first_rows, tile, num_decodes, num_sequences, TOKENS: tl.constexpr):
    """The sequence that a tile belongs to: the last that begins at or before it."""
    low, high = num_decodes, num_sequences
    while low + 1 < high:
        middle = (low + high) // 2
        if _first_tile(first_rows, middle, num_decodes, TOKENS) <= tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit(do_not_specialize=["num_decodes", "num_sequences"])
def attend(
    queries,
    keys,
    values,
    out,
    partial,
    partial_weights,
    sinks,
    blocks,
    starts,
    contexts,
    first_rows,
    num_decodes,
    num_sequences,
    scale,
    query_stride,
    head_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_KEYS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    IS_DECODE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    tile = tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    split, num_splits = tl.program_id(2), tl.num_programs(2)
    TOKENS: tl.constexpr = 1 if IS_DECODE else TILE_ROWS // GROUP
    if IS_DECODE:
        sequence, row, num_rows, first_token = tile, tile, 1, 0
    else:
        sequence = _find_sequence(first_rows, tile, num_decodes, num_sequences, TOKENS)
        row = tl.load(first_rows + sequence).to(tl.int32)
        num_rows = tl.load(first_rows + sequence + 1).to(tl.int32) - row
        first_token = (tile - _first_tile(first_rows, sequence, num_decodes, TOKENS)) * TOKENS
        if first_token >= num_rows:
            return
    before = tl.load(contexts + sequence).to(tl.int32) - num_rows  # positions before the step's first
    table = blocks + tl.load(starts + sequence)

    lane = tl.arange(0, TILE_ROWS)
    dim = tl.arange(0, PADDED_DIM)
    token = first_token + lane // GROUP
    head = kv_head * GROUP + lane % GROUP
    is_query = (lane < TOKENS * GROUP) & (token < num_rows)
    is_dim = dim < HEAD_DIM
    position = before + token
    tile_row = (row + token).to(tl.int64)
    query_at = queries + (tile_row * query_stride + head * HEAD_DIM)[:, None] + dim[None, :]
    query = tl.load(query_at, mask=is_query[:, None] & is_dim[None, :], other=0.0)
    if WIDEN:
        query = query.to(tl.float32)

    stop = before + tl.minimum(first_token + TOKENS, num_rows)
    begin = 0
    if WINDOW > 0:  # blocks before it may be another sequence's by now
        begin = tl.maximum(before + first_token - WINDOW + 1, 0)
    span = tl.cdiv(tl.cdiv(stop - begin, num_splits), TILE_KEYS) * TILE_KEYS
    begin += split * span
    stop = tl.minimum(stop, begin + span)

    peak = tl.full([TILE_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([TILE_ROWS], tl.float32)
    if HAS_SINKS and split == 0:
        peak = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
        total = tl.full([TILE_ROWS], 1.0, tl.float32)
    gathered = tl.zeros([TILE_ROWS, PADDED_DIM], tl.float32)
    for first_key in range(begin, stop, TILE_KEYS):
        at = first_key + tl.arange(0, TILE_KEYS)
        is_key = at < stop
        block = tl.load(table + at // BLOCK_SIZE, mask=is_key, other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + at % BLOCK_SIZE
        offset = kv_head * head_stride + slot[:, None] * HEAD_DIM + dim[None, :]
        is_stored = is_key[:, None] & is_dim[None, :]
        key = tl.load(keys + offset, mask=is_stored, other=0.0)
        value = tl.load(values + offset, mask=is_stored, other=0.0)
        if WIDEN:
            key, value = key.to(tl.float32), value.to(tl.float32)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        if SOFTCAP > 0:
            scores = SOFTCAP * (1 - 2 / (tl.exp(2 * scores / SOFTCAP) + 1))  # tanh
        scores *= 1.4426950408889634  # log2(e), for exp2
        is_visible = (at[None, :] <= position[:, None]) & is_key[None, :]
        if WINDOW > 0:
            is_visible &= at[None, :] > position[:, None] - WINDOW
        scores = tl.where(is_visible, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(weights, 1)
        gathered = gathered * shrink[:, None]
        gathered = tl.dot(weights.to(value.dtype), value, gathered, input_precision="ieee")
        peak = new_peak

    total = tl.where(total == 0, 1.0, total)  # of a tile's unused rows, and where a split has no keys
    gathered = gathered / total[:, None]
    is_written = is_query[:, None] & is_dim[None, :]
    output_row = tile_row * (KV_HEADS * GROUP) + head
    if not IS_SPLIT:
        tl.store(
            out + output_row[:, None] * HEAD_DIM + dim[None, :], gathered.to(out.dtype.element_ty), is_written
        )
    else:
        output_row = output_row * num_splits + split
        tl.store(partial + output_row[:, None] * HEAD_DIM + dim[None, :], gathered, is_written)
        tl.store(partial_weights + output_row, peak + tl.log2(total), is_query)


@triton.jit
def store(
    keys,
    values,
    cached_keys,
    cached_values,
    slots,
    key_stride,
    key_head_stride,
    value_stride,
    value_head_stride,
    head_stride,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
):
    """One head of one token; a row that only fills up a batch has no slot."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    dim = tl.arange(0, PADDED_DIM)
    slot = tl.load(slots + row)
    is_stored = (dim < HEAD_DIM) & (slot >= 0)
    at = head * head_stride + slot * HEAD_DIM + dim
    key = tl.load(keys + row * key_stride + head * key_head_stride + dim, mask=is_stored, other=0.0)
    value = tl.load(values + row * value_stride + head * value_head_stride + dim, mask=is_stored, other=0.0)
    tl.store(cached_keys + at, key, is_stored)
    tl.store(cached_values + at, value, is_stored)


@triton.jit(do_not_specialize=["num_splits"])
def combine(
    partial,
    partial_weights,
    out,
    num_splits,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
):
    """One output row and head from the splits' results, weighted by their sums of exponentials."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, PADDED_SPLITS)
    dim = tl.arange(0, PADDED_DIM)
    is_split, is_dim = split < num_splits, dim < HEAD_DIM
    exponents = tl.load(partial_weights + row * num_splits + split, mask=is_split, other=float("-inf"))
    peak = tl.max(exponents, 0)
    weights = tl.exp2(exponents - tl.where(peak == float("-inf"), 0.0, peak))
    offset = (row * num_splits + split)[:, None] * HEAD_DIM + dim[None, :]
    parts = tl.load(partial + offset, mask=is_split[:, None] & is_dim[None, :], other=0.0)
    total = tl.sum(weights, 0)
    joined = tl.sum(parts * weights[:, None], 0) / tl.where(total == 0, 1.0, total)
    tl.store(out + row * HEAD_DIM + dim, joined.to(out.dtype.element_ty), is_dim)
