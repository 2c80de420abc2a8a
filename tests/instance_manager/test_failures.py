"""The classes and messages of failures."""

from __future__ import annotations

import pytest

from engine.checkpoint.model_path import resolve_model
from engine.errors import ModelNotFound
from engine.server.http.listener import AddressInUse, listen
from instance_manager.backends import BACKENDS
from instance_manager.lifecycle.failures import (
    LOG_TAIL_LINES,
    classify_exit,
    describe_exit,
    explain,
    relevant_lines,
    start_error,
)
from instance_manager.types import FailureClass

ANY = BACKENDS["command"].log_patterns  # of all kinds: a command may run any server


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("OSError: [Errno 98] Address already in use", FailureClass.PORT_IN_USE),
        (
            "OSError: [Errno 48] error while attempting to bind: address already in use",
            FailureClass.PORT_IN_USE,
        ),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", FailureClass.OUT_OF_MEMORY),
        ("terminate called after throwing an instance of 'std::bad_alloc'", FailureClass.OUT_OF_MEMORY),
        ("ValueError: No available memory for the cache blocks.", FailureClass.OUT_OF_MEMORY),
        (
            "OSError: acme/x is not a local folder and is not a valid model identifier",
            FailureClass.MODEL_NOT_FOUND,
        ),
        ("model_not_found: no directory and no cached checkpoint", FailureClass.MODEL_NOT_FOUND),
        ("api_server.py: error: unrecognized arguments: --nope", FailureClass.BAD_ARGUMENTS),
        (
            "ValueError: Invalid repository ID or local directory specified",
            FailureClass.MODEL_NOT_FOUND,
        ),
        ("ValueError: Model path does not exist: /x.gguf", FailureClass.MODEL_NOT_FOUND),
        ("ValidationError: 1 validation error for ModelConfig", FailureClass.BAD_ARGUMENTS),
        ("2026 ERROR engine: unsupported model: it has no config.json", FailureClass.UNSUPPORTED_MODEL),
        ("2026 ERROR engine: bad checkpoint: x can't be read", FailureClass.UNSUPPORTED_MODEL),
        (
            "ValueError: Model architectures ['X'] are not supported for now. Supported architectures: …",
            FailureClass.UNSUPPORTED_MODEL,
        ),
        ("llama_model_load: error: unknown model architecture: 'x'", FailureClass.UNSUPPORTED_MODEL),
        ("something else entirely", FailureClass.CRASHED),
    ],
)
def test_log_lines_classify_a_failed_start(line: str, expected: FailureClass) -> None:
    assert classify_exit(1, ["loading", line, "bye"], ANY, was_ready=False).failure_class is expected


def test_exit_code_two_means_wrong_arguments_only_while_starting() -> None:
    assert classify_exit(2, [], ANY, was_ready=False).failure_class is FailureClass.BAD_ARGUMENTS
    assert classify_exit(2, [], ANY, was_ready=True).failure_class is FailureClass.CRASHED


def test_once_ready_only_memory_errors_classify_a_crash() -> None:
    request_line = "error for request 7: model_not_found"
    assert classify_exit(1, [request_line], ANY, was_ready=True).failure_class is FailureClass.CRASHED
    failure = classify_exit(1, ["out of memory"], ANY, was_ready=True)
    assert failure.failure_class is FailureClass.OUT_OF_MEMORY


def test_exit_code_and_signal_exclude_each_other() -> None:
    assert describe_exit(3) == (3, None)
    assert describe_exit(-9) == (None, "SIGKILL")
    assert describe_exit(-250) == (None, "signal 250")


def test_sigkill_is_explained_by_the_kernels_memory_killer() -> None:
    assert "out-of-memory killer" in classify_exit(-9, [], ANY, was_ready=True).message
    assert "out-of-memory killer" not in classify_exit(-15, [], ANY, was_ready=True).message


def test_the_tail_is_bounded_and_the_message_short() -> None:
    lines = [f"line {i}" for i in range(50)] + [""]
    failure = classify_exit(-11, lines, ANY, was_ready=True)
    assert failure.log_tail == tuple(lines[-LOG_TAIL_LINES:])
    assert failure.signal == "SIGSEGV"
    assert explain(failure, num_lines=2) == (
        "the engine was ended by SIGSEGV while it was running; last log lines: line 48 | line 49"
    )
    assert (
        explain(classify_exit(7, [], ANY, was_ready=False))
        == "the engine exited with code 7 before it was ready"
    )


def test_exit_noise_and_access_lines_are_left_out_of_the_tail() -> None:
    reason = ["EngineDeadError: EngineCore encountered an issue.", " - a list's item"]
    noise = [
        "INFO:     Shutting down",
        "INFO:     Finished server process [8468]",
        "nanobind: leaked 514 functions!",
        *(f' - leaked function "create_{i}"' for i in range(LOG_TAIL_LINES)),
        " - ... skipped remainder",
        "See https://nanobind.readthedocs.io/en/latest/refleaks.html",
    ]
    assert relevant_lines([*reason, *noise], ANY) == reason
    access = ['INFO:     127.0.0.1:0 - "POST /v1/chat/completions HTTP/1.1" 500 Internal Server Error'] * 30
    assert relevant_lines([*reason, *access], ANY) == reason
    ours = [
        '2026 INFO engine.requests: "POST /v1/completions" 500 id=x prompt=3 cached=0 output=0 finish=error',
        "2026 INFO engine.stats: Avg prompt throughput: 1.0 tokens/s, Running: 1 reqs",
        "INFO 01-01 loggers.py:116] Engine 000: Avg prompt throughput: 1.0 tokens/s, Running: 1 reqs",
    ]
    assert relevant_lines([*reason, *ours * 10], ANY) == reason
    assert relevant_lines(["a"] * 99, ANY) == ["a"] * LOG_TAIL_LINES


def test_an_unsupported_checkpoint_is_explained_by_one_line() -> None:
    lines = ["INFO engine: Listening", "2026 ERROR engine: unsupported model: it holds GGUF weights only."]
    failure = classify_exit(65, lines, ANY, was_ready=False)
    assert explain(failure) == "it holds GGUF weights only."
    error = start_error("model 'x'", failure, "i1")
    assert (error.code, str(error)) == (
        "unsupported_model",
        "model 'x' can't be run: it holds GGUF weights only.",
    )
    assert start_error("x", classify_exit(1, [], ANY, was_ready=False), "i1").code == "instance_failed"


def test_flags_that_do_not_fit_are_explained_by_one_line() -> None:
    reason = "--tensor-parallel-size 3 doesn't divide this model: it has 4 heads. Possible: 1, 2, 4."
    lines = ["INFO engine: Listening", f"2026 ERROR engine: bad arguments: {reason}"]
    failure = classify_exit(2, lines, BACKENDS["engine"].log_patterns, was_ready=False)
    assert explain(failure) == reason


def test_the_engines_own_memory_message_is_the_explanation() -> None:
    lines = [
        "INFO engine: Listening",
        "2026 ERROR engine: out of memory: One sequence needs 5 GiB. Lower it.",
    ]
    failure = classify_exit(1, lines, ANY, was_ready=False)
    assert explain(failure) == "One sequence needs 5 GiB. Lower it."
    assert "while it was running" in classify_exit(1, lines, ANY, was_ready=True).message


def test_a_lost_port_and_a_missing_model_are_explained_by_the_engines_own_line() -> None:
    """The line as the engine writes it: a lost port is tried again on the next one."""
    first = listen("127.0.0.1", 0)
    with first, pytest.raises(AddressInUse) as lost:
        listen("127.0.0.1", first.getsockname()[1])
    with pytest.raises(ModelNotFound) as missing:
        resolve_model("/no/such")
    for error, expected in (
        (lost.value, FailureClass.PORT_IN_USE),
        (missing.value, FailureClass.MODEL_NOT_FOUND),
    ):
        line = f"2026-01-01 00:00:00,000 ERROR engine: {error.code.replace('_', ' ')}: {error.message}"
        failure = classify_exit(98, ["loading", line], BACKENDS["engine"].log_patterns, was_ready=False)
        assert (failure.failure_class, failure.message) == (expected, error.message)
