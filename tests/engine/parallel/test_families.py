"""Every family of this engine's own classes computes on two ranks what it does on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from engine.core.batch import Batch
from engine.models.registry import ARCHITECTURES
from tests.engine.families.harness import TOLERANCE, prompt_of
from tests.engine.families.recipes import RECIPES, build, plain, save
from tests.engine.parallel.test_division import share_of_runner
from tests.engine.parallel.thread_group import ThreadGroup, on_ranks
from tests.engine.test_models import chunk

NATIVE = [
    name
    for name, recipe in RECIPES.items()
    if MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(recipe.model_type) in ARCHITECTURES
]
REPEATED = ("olmo2", "qwen3_moe")  # key-value heads, for four ranks


@pytest.mark.parametrize(
    ("name", "size"), [*((name, 2) for name in NATIVE), *((name, 4) for name in REPEATED)]
)
def test_ranks_compute_what_plain_transformers_does(name: str, size: int, tmp_path: Path) -> None:
    directory = save(build(name), tmp_path)
    texts = [prompt_of(length) for length in (39, 15)]
    tables = [[7, 3, 5, 8, 1], [2, 0]]
    batches: list[Any] = [
        (chunk(texts[0], 0, 25, tables[0]),),
        (chunk(texts[0], 25, 38, tables[0]), chunk(texts[1], 0, 14, tables[1])),
        (chunk(texts[0], 38, 39, tables[0]), chunk(texts[1], 14, 15, tables[1])),
    ]

    def run(group: ThreadGroup) -> torch.Tensor | None:
        runner = share_of_runner(directory, group, max_model_len=64)
        return [runner.logits(Batch(batch)) for batch in batches][-1]

    logits = on_ranks(size, run)[0]
    assert logits is not None
    model = plain(directory)
    with torch.inference_mode():
        for row, text in zip(logits, texts, strict=True):
            expected = model(torch.tensor([text]), use_cache=False).logits[0, -1]
            assert (row - expected).abs().max() < TOLERANCE
