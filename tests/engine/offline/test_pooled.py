"""`LLM` with models that embed, classify and score: the server's values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine import LLM, PoolingParams
from engine.errors import EngineError, InvalidRequest
from tests.engine.pooling.serving import pooling
from tests.engine.pooling.tiny_poolers import make_pooler, write_modules

TEXTS = ["a fox", "a dog and a fox", "nothing"]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("poolers")
    embeds = write_modules(make_pooler("bert", root, matryoshka_dimensions=[8, 16, 32]), "mean_tokens")
    return {
        "embeds": embeds,
        "scores": make_pooler("xlm-cross", root),
        "labels": make_pooler("llama-three", root),
    }


@pytest.fixture(scope="module", params=["embeds", "scores", "labels"])
def both(request: pytest.FixtureRequest, directories: dict[str, Path]) -> Iterator[tuple[LLM, httpx.Client]]:
    """The same model in the program and behind a server."""
    directory = directories[request.param]
    with (
        LLM(directory, device="cpu", num_threads=1, runner="pooling") as llm,
        pooling(directory, engine={"runner": "pooling"}) as server,
        server.http() as client,
    ):
        yield llm, client


def test_values_equal_the_servers(both: tuple[LLM, httpx.Client]) -> None:
    llm, client = both
    wanted = client.post("/pooling", json={"input": TEXTS}).json()["data"]
    outputs = llm.encode(TEXTS, use_tqdm=False)
    for output, item in zip(outputs, wanted, strict=True):
        assert output.outputs.data == pytest.approx(item["data"], abs=1e-6)
    (of_tokens,) = llm.encode({"prompt_token_ids": outputs[1].prompt_token_ids}, use_tqdm=False)
    assert of_tokens.outputs.data == pytest.approx(outputs[1].outputs.data, abs=1e-6)


def test_each_task_has_its_call(both: tuple[LLM, httpx.Client]) -> None:
    llm, _ = both
    data = [output.outputs.data for output in llm.encode(TEXTS, use_tqdm=False)]
    embeds = llm.encode(TEXTS[0], use_tqdm=False)[0].outputs.data == data[0] and len(data[0]) > 3
    called: Any
    called, other = (llm.embed, llm.classify) if embeds else (llm.classify, llm.embed)
    for output, values in zip(called(TEXTS, use_tqdm=False), data, strict=True):
        given = output.outputs
        assert (given.embedding if embeds else given.probs) == pytest.approx(values, abs=1e-6)
        assert (given.hidden_size if embeds else given.num_classes) == len(values)
    with pytest.raises(InvalidRequest, match="needs a model with the task"):
        other(TEXTS)
    with pytest.raises(InvalidRequest, match="generate needs a model that generates"):
        llm.generate(TEXTS)


def test_scores_equal_the_servers(both: tuple[LLM, httpx.Client]) -> None:
    llm, client = both
    answer = client.post("/score", json={"text_1": TEXTS[0], "text_2": TEXTS[1:]})
    if answer.status_code != 200:
        with pytest.raises(InvalidRequest, match="score needs a model with one label"):
            llm.score(TEXTS[0], TEXTS[1:])
        return
    outputs = llm.score(TEXTS[0], TEXTS[1:])
    wanted = [item["score"] for item in answer.json()["data"]]
    assert [output.outputs.score for output in outputs] == pytest.approx(wanted, abs=1e-6)
    num_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    assert num_tokens >= answer.json()["usage"]["total_tokens"]
    with pytest.raises(InvalidRequest, match="text_1 has 2 texts and text_2 has 3"):
        llm.score(TEXTS[:2], TEXTS)


def test_parameters_apply_and_are_checked(directories: dict[str, Path]) -> None:
    with LLM(directories["embeds"], num_threads=1) as llm:
        params = [PoolingParams(dimensions=8), PoolingParams(), PoolingParams(use_activation=False)]
        outputs = llm.embed(TEXTS, pooling_params=params, use_tqdm=False)
        assert [output.outputs.hidden_size for output in outputs] == [8, 32, 32]
        assert sum(value**2 for value in outputs[0].outputs.embedding) == pytest.approx(1, abs=1e-4)
        with pytest.raises(InvalidRequest, match=r"prompts\[1\]: dimensions 7 is not supported"):
            llm.embed(TEXTS[:2], pooling_params=[PoolingParams(), PoolingParams(dimensions=7)])
        with pytest.raises(InvalidRequest, match=r"prompts\[0\]: input"):
            llm.embed([None, "a"])  # type: ignore[arg-type]
        llm.sleep()
        with pytest.raises(EngineError, match=r"call wake_up\(\) first"):
            llm.embed(TEXTS)
        llm.wake_up()
        assert len(llm.embed(TEXTS, use_tqdm=False)) == 3
