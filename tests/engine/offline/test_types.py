"""`from engine import LLM` has types: mypy, which `make check` runs, fails here where they are Any."""

from __future__ import annotations

import ast
import inspect
from typing import assert_type

import engine
from engine import LLM, CompletionOutput, LoRARequest, RequestOutput, SamplingParams


def as_a_program_uses_it(llm: LLM) -> None:
    """Never called."""
    params = SamplingParams(temperature=0.5, max_tokens=3)
    outputs = llm.generate(["a"], params, lora_request=LoRARequest("a", 1, "/a"))
    assert_type(outputs, list[RequestOutput])
    assert_type(outputs[0].outputs[0], CompletionOutput)
    assert_type(outputs[0].outputs[0].text, str)
    assert_type(llm.embed("a")[0].outputs.embedding, list[float])
    assert_type(llm.get_default_sampling_params(), SamplingParams)
    assert_type(engine.LLM("m"), LLM)
    LLM(5)  # type: ignore[arg-type]
    SamplingParams(temperature="hot")  # type: ignore[arg-type]
    llm.generate()  # type: ignore[call-arg]
    engine.NoSuchName  # type: ignore[attr-defined]  # noqa: B018


def test_every_name_that_is_loaded_when_used_is_declared_for_type_checkers() -> None:
    tree = ast.parse(inspect.getsource(engine))
    (block,) = (
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    declared = {
        alias.name: (node.module or "").rpartition(".")[2]
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == engine._OFFLINE
    assert all(getattr(engine, name).__name__ == name for name in declared)
