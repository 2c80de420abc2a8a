"""The next step after an error: none that doesn't help."""

from __future__ import annotations

import pytest

from cli.refusals import refusal


@pytest.mark.parametrize(
    ("message", "helps"),
    [
        ("it has pickled weights: convert them, or vLLM may run it (`engine: vllm`).", True),
        ("it holds GGUF weights only: run llama.cpp (`engine: command` with llama-server).", True),
        ("model.safetensors is cut short: its download isn't finished.", False),
        ("it has no tokenizer: neither tokenizer.json nor another known file.", False),
    ],
)
def test_another_engine_is_named_where_the_reason_names_one(message: str, helps: bool) -> None:
    body = {"error": {"message": message, "code": "unsupported_model", "type": "invalid_request_error"}}
    next_step = refusal(422, body, url="http://x").next_step
    assert (next_step is not None) == helps
    assert next_step is None or "`engine` in models.yaml" in next_step
