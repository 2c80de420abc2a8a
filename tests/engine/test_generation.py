"""The whole core gives the same greedy tokens as plain transformers, however requests are batched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.types import EngineRequest, SamplingParams
from engine.execution.build import build_core
from engine.models.native.kernels import find_kernels
from tests.engine.tiny_models import RECIPES, Reference, prompt_of

LENGTHS = (1, 5, 16, 17, 33, 64, 100)
NUM_TOKENS = 24


@pytest.fixture(scope="module", params=sorted(RECIPES))
def model(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Iterator[Path]:
    yield checkpoint(request.param)


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[int, list[int]]:
    """The reference's continuation of each length's prompt."""
    reference = Reference(model)
    continuations = {length: reference.generate(prompt_of(length), NUM_TOKENS) for length in LENGTHS}
    assert len({tuple(tokens) for tokens in continuations.values()}) == len(LENGTHS)
    dullest = min(len(set(tokens)) for tokens in continuations.values())
    assert dullest > 2, "a checkpoint too dull to test with"
    return continuations


def core_of(model: Path, **options: object) -> EngineCore:
    return build_core(EngineConfig(model=model, dtype="float32", device="cpu", num_threads=2, **options))  # type: ignore[arg-type]


def greedy(request_id: str, prompt: Sequence[int], num_tokens: int = NUM_TOKENS) -> EngineRequest:
    return request_of(
        request_id, prompt, SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    )


def request_of(request_id: str, prompt: Sequence[int], params: SamplingParams) -> EngineRequest:
    return EngineRequest(request_id=request_id, prompt_token_ids=prompt, params=params, arrival_time=0.0)


def run(core: EngineCore, requests: Sequence[EngineRequest]) -> dict[str, list[int]]:
    """Each request's tokens, with all requests in the core at once."""
    for request in requests:
        core.add(request)
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    while core.has_work:
        for delta in core.step():
            assert delta.error is None
            tokens[delta.request_id].extend(delta.token_ids)
    return tokens


def all_greedy(core: EngineCore) -> dict[int, list[int]]:
    tokens = run(core, [greedy(str(length), prompt_of(length)) for length in LENGTHS])
    return {length: tokens[str(length)] for length in LENGTHS}


def test_one_request_alone(model: Path, expected: dict[int, list[int]]) -> None:
    core = core_of(model)
    for length in LENGTHS:
        assert run(core, [greedy("only", prompt_of(length))])["only"] == expected[length]


def test_without_compiled_kernels(
    model: Path, expected: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like on a machine without a compiler."""
    monkeypatch.setattr("engine.models.native.kernels.load_library", lambda: None)
    find_kernels.cache_clear()
    try:
        assert all_greedy(core_of(model)) == expected
    finally:
        find_kernels.cache_clear()


def test_in_a_batch_of_mixed_lengths(model: Path, expected: dict[int, list[int]]) -> None:
    assert all_greedy(core_of(model)) == expected


def test_joining_and_leaving_at_different_times(model: Path, expected: dict[int, list[int]]) -> None:
    core = core_of(model)
    tokens: dict[str, list[int]] = {}
    for length in LENGTHS:  # a new one every third step, beside those that decode already
        core.add(greedy(str(length), prompt_of(length)))
        for _ in range(3):
            for delta in core.step():
                tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
    while core.has_work:
        for delta in core.step():
            tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
    assert {int(name): values for name, values in tokens.items()} == expected


def test_with_chunked_prefill(model: Path, expected: dict[int, list[int]]) -> None:
    assert all_greedy(core_of(model, max_num_batched_tokens=11, max_num_seqs=8)) == expected


def test_with_preemption(model: Path, expected: dict[int, list[int]]) -> None:
    # 25 blocks of 8 hold the longest (124 tokens, 16 blocks), but not the 30 blocks of all the prompts.
    core = core_of(
        model, block_size=8, num_gpu_blocks_override=25, max_model_len=128, enable_prefix_caching=False
    )
    assert all_greedy(core) == expected
    assert core.stats().num_preemptions > 0


def test_with_prefix_cache_hits(model: Path, expected: dict[int, list[int]]) -> None:
    core = core_of(model)
    all_greedy(core)
    assert core.stats().prefix_cache_hits == 0
    assert all_greedy(core) == expected
    assert core.stats().prefix_cache_hits == 16 * sum((length - 1) // 16 for length in LENGTHS)


def test_with_a_shared_prefix_of_another_request(model: Path) -> None:
    first, second = prompt_of(48) + prompt_of(9, seed=1), prompt_of(48) + prompt_of(20, seed=2)
    reference = Reference(model)
    core = core_of(model)
    run(core, [greedy("first", first)])
    assert run(core, [greedy("second", second)])["second"] == reference.generate(second, NUM_TOKENS)
    assert core.stats().prefix_cache_hits == 48


def test_with_scattered_blocks(model: Path, expected: dict[int, list[int]]) -> None:
    """Blocks freed in between leave gaps: block tables that aren't consecutive are gathered."""
    core = core_of(
        model, block_size=4, num_gpu_blocks_override=90, max_model_len=128, enable_prefix_caching=False
    )
    for index in range(10):
        core.add(greedy(f"short-{index}", prompt_of(7 + index), 2 + 3 * (index % 3)))
        core.step()
    assert all_greedy_beside(core) == expected


def all_greedy_beside(core: EngineCore) -> dict[int, list[int]]:
    for length in LENGTHS:
        core.add(greedy(str(length), prompt_of(length)))
    tokens: dict[int, list[int]] = {length: [] for length in LENGTHS}
    while core.has_work:
        for delta in core.step():
            if delta.request_id.isdigit():
                tokens[int(delta.request_id)].extend(delta.token_ids)
    return tokens


SAMPLED = (
    SamplingParams(max_tokens=20, temperature=1.0, seed=1, ignore_eos=True),
    SamplingParams(max_tokens=20, temperature=0.7, top_p=0.9, seed=2, ignore_eos=True),
    SamplingParams(max_tokens=20, temperature=1.5, top_k=12, seed=3, ignore_eos=True),
    SamplingParams(max_tokens=20, temperature=1.0, min_p=0.05, seed=4, ignore_eos=True),
    SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True),
    SamplingParams(max_tokens=20, temperature=1.2, top_p=0.8, top_k=50, min_p=0.01, seed=5, ignore_eos=True),
)


def test_sampled_tokens_do_not_depend_on_the_batch(model: Path) -> None:
    core = core_of(model, enable_prefix_caching=False)
    requests = [request_of(str(i), prompt_of(10 + 7 * i), params) for i, params in enumerate(SAMPLED)]
    alone = {r.request_id: run(core, [r])[r.request_id] for r in requests}
    assert run(core, requests) == alone
    preempting = core_of(
        model, block_size=8, num_gpu_blocks_override=14, max_model_len=80, enable_prefix_caching=False
    )
    assert run(preempting, requests) == alone
    assert preempting.stats().num_preemptions > 0
    assert len({tuple(tokens) for tokens in alone.values()}) == len(alone)


def test_min_tokens_forbids_the_end_of_sequence(model: Path) -> None:
    prompt = prompt_of(12)
    free = Reference(model).generate(prompt, 12)
    stop_token = free[2]
    params = SamplingParams(
        max_tokens=12, temperature=0.0, stop_token_ids=frozenset({stop_token}), min_tokens=8
    )
    tokens = run(core_of(model), [request_of("min", prompt, params)])["min"]
    assert len(tokens) >= 8
    assert stop_token not in tokens[:8]


@pytest.mark.parametrize("architecture", ["qwen3-tied", "llama3-tied"])
def test_bfloat16_stays_close_to_float32(architecture: str, checkpoint: Callable[[str], Path]) -> None:
    """The same path in bfloat16, packed linears included: not equal tokens, but nearly the same logits."""
    from tests.engine.test_models import prefill_logits

    path = checkpoint(architecture)
    expected = Reference(path).logits(prompt_of(40))[-1]
    logits = prefill_logits(path, prompt_of(40), dtype=torch.bfloat16).float()
    assert torch.nn.functional.cosine_similarity(logits, expected, dim=0) > 0.999
