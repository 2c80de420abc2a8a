"""The end of the output: end tokens of the checkpoint and tokenizer, and complete grammars."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.execution.build import build_core
from engine.text.tokenizer import load_tokenizer
from tests.engine.server.serving import Running, running

DEMO = Path(__file__).resolve().parents[3] / "models" / "berth-demo"
IM_END, ENDOFTEXT = 3065, 3063
YES_OR_NO = {"structured_outputs": {"choice": ["yes", "no"]}}


@contextmanager
def serving(
    folder: Path,
    *,
    eos_token: str | None,
    generation: object = None,
    config: object = None,
    overrides: Mapping[str, Any] | None = None,
) -> Iterator[Running]:
    """The demo model with only these end tokens in its files."""
    directory = folder / "model"
    shutil.copytree(DEMO, directory)
    _edit(directory / "config.json", {"eos_token_id": config})
    _edit(directory / "generation_config.json", {"eos_token_id": generation})
    _edit(directory / "tokenizer_config.json", {"eos_token": eos_token})
    engine_config = EngineConfig(
        model=directory,
        dtype="float32",
        device="cpu",
        max_num_seqs=4,
        num_threads=1,
        hf_overrides=overrides or {},
    )
    tokenizer = load_tokenizer(directory, overrides=overrides)
    with running(
        directory,
        lambda: build_core(engine_config, eos_token_ids=tokenizer.end_token_ids),
        tokenizer=tokenizer,
    ) as server:
        yield server


def _edit(path: Path, changes: Mapping[str, Any]) -> None:
    kept = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in kept.items() if value is not None}))


def complete(server: Running, **fields: Any) -> Any:
    body = {"prompt": "Is it?", "temperature": 0, "max_tokens": 40, **fields}
    with server.http() as http:
        answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_model_without_an_end_token_completes_a_constrained_output(tmp_path: Path) -> None:
    with serving(tmp_path, eos_token=None) as server:
        [choice] = complete(server, **YES_OR_NO)["choices"]
        assert choice["text"] in ("yes", "no")
        assert choice["finish_reason"] == "stop"
        schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
        [choice] = complete(server, structured_outputs={"json": schema})["choices"]
        assert json.loads(choice["text"])["a"] in (1, 2)


def test_grammars_and_the_scheduler_know_the_same_end_tokens(tmp_path: Path) -> None:
    """The end tokens in generation_config.json override those in config.json."""
    with serving(tmp_path, eos_token=None, generation=IM_END, config=ENDOFTEXT) as server:
        answer = complete(server, **YES_OR_NO, logit_bias={str(ENDOFTEXT): 100})
    [choice] = answer["choices"]
    assert choice["text"] in ("yes", "no")
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 10


def test_an_end_token_that_a_flag_names_is_everyones(tmp_path: Path) -> None:
    with serving(tmp_path, eos_token=None, config=ENDOFTEXT, overrides={"eos_token_id": [IM_END]}) as server:
        answer = complete(server, **YES_OR_NO, logit_bias={str(ENDOFTEXT): 100})
    [choice] = answer["choices"]
    assert choice["text"] in ("yes", "no")
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 10


def test_a_complete_constrained_answer_ends_before_min_tokens(demo_server: Running) -> None:
    for temperature in (0, 1):
        answer = complete(demo_server, **YES_OR_NO, min_tokens=20, n=3, temperature=temperature, seed=1)
        for choice in answer["choices"]:
            assert choice["text"] in ("yes", "no")
            assert choice["finish_reason"] == "stop"
