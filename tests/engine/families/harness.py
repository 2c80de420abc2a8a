"""Compares the engine with plain transformers on one checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from engine.config import EngineConfig
from engine.core.batch import Batch, ScheduledSequence
from engine.core.engine_core import EngineCore
from engine.core.state_slots import SlotPair
from engine.execution.build import build_core
from tests.engine.families.recipes import VOCAB_SIZE
from tests.engine.test_generation import greedy, run
from tests.engine.test_models import chunk

TOLERANCE = 1e-4
LENGTHS = (3, 9, 14, 37)
NUM_TOKENS = 16
NUM_BLOCKS = 9  # too few for all requests: some are preempted


def core_of(directory: Path, **options: Any) -> EngineCore:
    config = EngineConfig(
        model=directory,
        device="cpu",
        num_threads=1,
        max_model_len=64,
        block_size=8,
        **{
            "dtype": "float32",
            "max_num_batched_tokens": 16,
            "num_gpu_blocks_override": NUM_BLOCKS,
            **options,
        },
    )
    return build_core(config)


def prompt_of(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(2, VOCAB_SIZE, (length,), generator=generator).tolist()


@torch.inference_mode()
def reference_logits(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    return model(torch.tensor([tokens]), use_cache=False).logits[0]  # type: ignore[no-any-return]


def continues_greedily(model: PreTrainedModel, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
    """Whether each token is the likeliest after those before it, so that plain generation gives the same."""
    logits = reference_logits(model, [*prompt, *tokens])[len(prompt) - 1 : -1]
    return logits.argmax(dim=-1).tolist() == list(tokens)


def logits_difference(core: EngineCore, model: PreTrainedModel) -> float:
    """The largest: prefill in chunks, decodes over scattered blocks, and both of several texts in a batch."""
    texts = [prompt_of(length) for length in (39, 15, 16)]
    tables = [[7, 3, 5, 8, 1], [2, 0], [6, 4]]
    runner: Any = core._runner
    worst = 0.0
    batches = [
        (chunk(texts[0], 0, 25, tables[0]),),
        (chunk(texts[0], 25, 37, tables[0]), chunk(texts[1], 0, 13, tables[1])),
        (
            chunk(texts[1], 13, 14, tables[1]),
            chunk(texts[0], 37, 38, tables[0]),
            chunk(texts[2], 0, 16, tables[2]),
        ),
        (chunk(texts[0], 38, 39, tables[0]), chunk(texts[1], 14, 15, tables[1])),
    ]
    expected = {
        tuple(table): reference_logits(model, text) for table, text in zip(tables, texts, strict=True)
    }
    slots = {
        tuple(table): SlotPair(*pair) for table, pair in zip(tables, ((5, 0), (2, 9), (4, 1)), strict=True)
    }
    for batch in batches:
        logits = runner.logits(Batch(_in_slots(batch, slots) if runner.num_state_slots else batch))
        for row, part in zip(logits, batch, strict=True):
            wanted = expected[tuple(part.input.block_ids)][part.input.start + len(part.input.token_ids) - 1]
            worst = max(worst, float((row - wanted).abs().max()))
    return worst


def _in_slots(
    batch: Sequence[ScheduledSequence], slots: dict[tuple[int, ...], SlotPair]
) -> list[ScheduledSequence]:
    """For a model that carries a state: each text reads what its last step wrote."""
    placed = []
    for one in batch:
        table = tuple(one.input.block_ids)
        placed.append(one._replace(input=one.input._replace(state_slots=slots[table])))
        slots[table] = slots[table].swapped
    return placed


def generated(core: EngineCore) -> dict[int, list[int]]:
    """Greedy continuations by prompt length, all at once."""
    tokens = run(core, [greedy(str(length), prompt_of(length), NUM_TOKENS) for length in LENGTHS])
    return {length: tokens[str(length)] for length in LENGTHS}
