"""What of a step goes to the model: plain data, small enough to be sent to other processes at every step."""

from __future__ import annotations

import pickle

from engine.core.types import SamplingParams
from tests.engine.fake_runner import FakeRunner, make_request
from tests.engine.test_constraints import Script
from tests.engine.test_core import make_core
from tests.engine.test_scheduler import Harness


def test_the_models_part_of_a_step_survives_pickling() -> None:
    """Of a prompt with logprobs, of a constrained sequence and of decodes."""
    harness = Harness(budget=16)
    params = SamplingParams(max_tokens=4, prompt_logprobs=0)
    harness.add(make_request("scored", range(9), params=params), make_request("plain", [1, 2]))
    for _ in range(3):
        batch = harness.step()
        assert pickle.loads(pickle.dumps(batch.inputs)) == batch.inputs  # noqa: S301
        assert all(type(one.token_ids) is list for one in batch.inputs)


def test_what_only_sampling_needs_stays_behind() -> None:
    """A constraint can't be pickled, and needn't be."""
    runner = FakeRunner()
    core = make_core(runner)
    script = Script([{2}, {3}])
    script.lock = lambda: None  # type: ignore[attr-defined]
    request = make_request("a", [1], params=SamplingParams(max_tokens=2, logit_bias={1: 2.0}))
    core.add(request)
    core.step()
    (sequence,) = runner.last_batch.sequences
    sequence = sequence._replace(constraint=script)
    assert pickle.loads(pickle.dumps(sequence.input)) == sequence.input  # noqa: S301


def test_a_steps_pickle_is_small() -> None:
    """Some 80 bytes per sequence and 8 for each of its blocks, whatever its prompt was."""
    harness = Harness(num_blocks=4096, block_size=16, max_num_seqs=32, budget=40_000, max_model_len=2048)
    harness.add(*(make_request(str(number), [number] * 1000, max_tokens=2) for number in range(32)))
    prefill, decode = harness.step(), harness.step()
    assert decode.num_tokens == 32
    assert len(pickle.dumps(decode.inputs)) < 32 * (80 + 8 * 64)
    assert len(pickle.dumps(prefill.inputs)) < 32 * (80 + 8 * 64 + 1000 * 3)


def test_a_step_does_not_see_what_later_steps_change() -> None:
    """Several may be under way: the block table of the first must not grow with the last."""
    harness = Harness(block_size=2)
    harness.add(make_request("a", [1, 2], max_tokens=8))
    tables = []
    for _ in range(8):
        (sequence,) = harness.step().inputs
        tables.append((sequence, list(sequence.block_ids)))
    assert len({len(table) for _, table in tables}) > 2
    assert all(list(sequence.block_ids) == table for sequence, table in tables)
