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
from engine.core.types import PositionLogprobs, SamplingParams
from engine.execution.build import build_core
from engine.launch.preflight import check_config
from engine.pooling.build import build_pooling_core
from engine.pooling.plan import RunnerKind, choose_runner, read_pooling_plan
from engine.pooling.types import PoolingRequest
from engine.text.tokenizer import Tokenizer
from tests.engine.families.recipe import VOCAB_SIZE
from tests.engine.test_generation import greedy, request_of, run
from tests.engine.test_models import chunk

TOLERANCE = 1e-4
LENGTHS = (3, 9, 14, 37)
POOLED_LENGTHS = (9, 20, 33)
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


def check_text(core: EngineCore, model: PreTrainedModel) -> None:
    """As plain transformers: in chunks, over scattered blocks, in batches of mixed lengths, and preempted."""
    assert logits_difference(core, model) < TOLERANCE
    assert generation_difference(core, model) < TOLERANCE
    assert core.stats().num_preemptions > 0


def generation_difference(core: EngineCore, model: PreTrainedModel) -> float:
    """Of the likeliest tokens' log-probabilities, in greedy continuations of several prompts at once.

    The tokens alone would show little: many a tiny model repeats one.
    """
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True, logprobs=8)
    for length in LENGTHS:
        core.add(request_of(str(length), prompt_of(length), params))
    found: dict[str, list[PositionLogprobs]] = {str(length): [] for length in LENGTHS}
    while core.has_work:
        for delta in core.step():
            assert delta.error is None
            found[delta.request_id] += delta.logprobs
    return max(_text_difference(model, prompt_of(length), found[str(length)]) for length in LENGTHS)


def _text_difference(
    model: PreTrainedModel, prompt: Sequence[int], found: Sequence[PositionLogprobs]
) -> float:
    tokens = [position.chosen.token_id for position in found]
    assert len(tokens) == NUM_TOKENS
    expected = reference_logits(model, [*prompt, *tokens])[len(prompt) - 1 : -1].log_softmax(dim=-1)
    assert expected.argmax(dim=-1).tolist() == tokens
    worst = 0.0
    for row, position in zip(expected, found, strict=True):
        assert len(position.top) == 8
        worst = max(worst, *(abs(float(row[one.token_id]) - one.logprob) for one in position.top))
    return worst


def check_embeddings(directory: Path, model: PreTrainedModel, **options: Any) -> None:
    """Each text's vector is its last token's hidden state, normalised."""
    prompts = [prompt_of(length) for length in POOLED_LENGTHS]
    for prompt, vector in zip(
        prompts, pooled(directory, prompts, runner="pooling", max_model_len=64, **options), strict=True
    ):
        with torch.inference_mode():
            last = model.base_model(torch.tensor([prompt]), use_cache=False).last_hidden_state[0, -1]
        assert (vector - last / last.norm()).abs().max() < TOLERANCE


def pooled(directory: Path, prompts: Sequence[Sequence[int]], **options: Any) -> list[torch.Tensor]:
    config = EngineConfig(model=directory, dtype="float32", device="cpu", num_threads=1, **options)
    check_config(config)
    assert choose_runner(config) is RunnerKind.POOLING
    core = build_pooling_core(config, read_pooling_plan(config), _no_tokenizer)
    requests = [
        PoolingRequest(request_id=str(n), token_ids=p, arrival_time=0.0) for n, p in enumerate(prompts)
    ]
    return [torch.tensor(value.tolist()) for value in core.runner.run(requests)]


def _no_tokenizer() -> Tokenizer:
    raise AssertionError("an embedding model needs no tokenizer")
