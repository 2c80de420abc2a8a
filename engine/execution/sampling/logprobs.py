"""Log-probabilities of tokens and of the most likely ones, from the model's unmodified logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.core.types import ALL_LOGPROBS, PositionLogprobs, TokenLogprob


def raw_logprobs(logits: torch.Tensor) -> torch.Tensor:
    """Before processors, temperature and filters: [R, vocab_size] → float32 of that shape, new memory."""
    return logits.log_softmax(dim=-1, dtype=torch.float32)


def position_logprobs(
    logprobs: torch.Tensor, token_ids: Sequence[int], num_top: Sequence[int]
) -> list[PositionLogprobs]:
    """For each row of `logprobs` [R, vocab_size]: the logprob of its token, and of the `num_top` most likely.

    Equally likely tokens share a rank and are ordered by id; if more of them tie than are requested, the
    row's own token is among those returned.
    """
    vocab_size = logprobs.shape[-1]
    counts = [vocab_size if count == ALL_LOGPROBS else min(count, vocab_size) for count in num_top]
    chosen = logprobs.gather(-1, torch.tensor(token_ids, device=logprobs.device)[:, None])
    ranks = (logprobs > chosen).sum(dim=-1, dtype=torch.int32) + 1  # a quarter of the time of int64
    values, tokens = logprobs.topk(max(counts), dim=-1)
    return [
        _position(TokenLogprob(*own), list(zip(row_values[:count], row_tokens[:count], strict=True)))
        for own, row_values, row_tokens, count in zip(
            zip(token_ids, chosen[:, 0].tolist(), ranks.tolist(), strict=True),
            values.tolist(),
            tokens.tolist(),
            counts,
            strict=True,
        )
    ]


def with_named(
    positions: list[PositionLogprobs], logprobs: torch.Tensor, named: Sequence[Sequence[int]]
) -> list[PositionLogprobs]:
    """`positions`, but for rows that name tokens: their own token's and the named tokens', in that order.

    Named tokens have no ranks. One look-up for all rows of `logprobs` [R, vocab_size]: a device waits once.
    """
    rows = [row for row, token_ids in enumerate(named) if token_ids]
    if not rows:
        return positions
    width = max(len(named[row]) for row in rows)
    padded = [[*named[row], *[0] * (width - len(named[row]))] for row in rows]
    columns = torch.tensor(padded, device=logprobs.device)
    values = logprobs[torch.tensor(rows, device=logprobs.device)[:, None], columns].tolist()
    positions = list(positions)
    for row, row_values in zip(rows, values, strict=True):
        chosen = positions[row].chosen
        others = {
            token: TokenLogprob(token, value, 0)
            for token, value in zip(named[row], row_values, strict=False)
            if token != chosen.token_id
        }
        positions[row] = PositionLogprobs(chosen, (chosen, *others.values()))
    return positions


def _position(chosen: TokenLogprob, most_likely: list[tuple[float, int]]) -> PositionLogprobs:
    if chosen.rank <= len(most_likely) and all(token != chosen.token_id for _, token in most_likely):
        most_likely[-1] = (chosen.logprob, chosen.token_id)  # had lost its place to an equally likely one
    most_likely.sort(key=lambda pair: (-pair[0], pair[1]))
    top = []
    rank = 0
    for index, (logprob, token) in enumerate(most_likely):
        if index == 0 or logprob != most_likely[index - 1][0]:
            rank = index + 1
        top.append(TokenLogprob(token, logprob, rank))
    return PositionLogprobs(chosen, tuple(top))
