"""What passes between the server's loop and the engine's thread is plain data, as for another process."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from engine import errors
from engine.core.sleep import ALL_PARTS
from engine.core.thread_calls import CallOutcome, ThreadCall
from engine.core.types import SamplingParams
from engine.errors import EngineError, InvalidRequest, PromptTooLong, UnsupportedModel
from tests.engine.fake_runner import FakeRunner, make_request
from tests.engine.test_core import make_core, raiser


def again(value: object) -> object:
    return pickle.loads(pickle.dumps(value))  # noqa: S301


def an_error_of_each_kind() -> Iterator[EngineError]:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, EngineError):
            yield kind("What was wrong.")
    yield InvalidRequest("A field is wrong.", param="prompt")
    yield InvalidRequest("A field is wrong.").renamed("Another field is wrong.", "input")
    yield PromptTooLong.of(16, 20, 4, part="messages")
    yield UnsupportedModel("It can't run.", advice=None)


@pytest.mark.parametrize("error", list(an_error_of_each_kind()), ids=lambda error: type(error).__name__)
def test_errors_survive_with_all_they_say(error: EngineError) -> None:
    read = again(error)
    assert type(read) is type(error) and isinstance(read, EngineError)
    assert str(read) == str(error) and vars(read) == vars(error) and read.code == error.code


def test_requests_and_deltas_survive(caplog: pytest.LogCaptureFixture) -> None:
    """With logprobs, timings, an end, and an error."""
    params = SamplingParams(
        max_tokens=3, logprobs=0, prompt_logprobs=0, logit_bias={5: 1.0}, stop_token_ids=frozenset({7})
    )
    request = make_request("a", [1, 2, 3], params=params)
    assert again(request) == request
    core = make_core(FakeRunner())
    core.add(request)
    deltas = [delta for _ in range(3) for delta in core.step()]
    assert deltas[-1].finish_reason is not None and again(deltas) == deltas
    failing = make_core(FakeRunner(before=raiser(RuntimeError("broken"))))
    failing.add(request)
    (failed,) = failing.step()
    read = again(failed)
    assert str(getattr(read, "error", None)) == str(failed.error)


def test_calls_and_outcomes_survive() -> None:
    call = ThreadCall(3, "wake_up", (ALL_PARTS,))
    assert again(call) == call
    outcome = again(CallOutcome(3, errors.OutOfMemory("Too little.")))
    assert isinstance(outcome, CallOutcome) and isinstance(outcome.failure, errors.OutOfMemory)
